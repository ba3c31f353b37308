#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

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

/// A strategy of `{"class_path": "TopP", "init_args": {"top_p": 0.8}}`; `where` names the file or option in errors.
///
/// @throws UserError for an unknown name or option, or a value out of range.
Strategy parse_strategy(const nlohmann::json& given, std::string_view where);

/// Sets one option by its name in `init_args`, as it is written on a command line (`top_p`, `0.8`).
void set_option(Strategy& strategy, std::string_view name, const nlohmann::json& value, std::string_view where);

}  // namespace lit_sft
