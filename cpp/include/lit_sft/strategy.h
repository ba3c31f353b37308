#pragma once

#include <cstddef>
#include <cstdint>

namespace lit_sft {

/// How the next token is chosen: the strategies of `lit_sft.generation.strategies`, by the same names and defaults.
struct Strategy {
    enum class Kind { greedy, beam_search, sampling };

    Kind kind = Kind::greedy;
    std::size_t max_new_tokens = 256;
    double repetition_penalty = 1.0;       ///< above 1, tokens seen before become less likely
    std::size_t no_repeat_ngram_size = 0;  ///< no sequence of so many tokens occurs twice; 0 to allow it
    std::size_t num_beams = 1;
    double length_penalty = 1.0;  ///< of beam search: exponent of the length by which a score is divided
    double temperature = 1.0;
    std::size_t top_k = 0;  ///< 0: all tokens
    double top_p = 1.0;
    std::int64_t seed = 0;
};

}  // namespace lit_sft
