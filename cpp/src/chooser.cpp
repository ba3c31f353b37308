#include "chooser.h"

#include "beam_chooser.h"
#include "single_chooser.h"

namespace lit_sft {

std::unique_ptr<Chooser> make_chooser(const Strategy& strategy, const TokenIds& prompt, const TokenIds& stop,
                                      std::size_t room, bool wants_logprobs) {
    if (strategy.kind == Strategy::Kind::beam_search)
        return std::make_unique<BeamChooser>(strategy, prompt, stop, room, wants_logprobs);
    return std::make_unique<SingleChooser>(strategy, prompt, stop, room, wants_logprobs);
}

}  // namespace lit_sft
