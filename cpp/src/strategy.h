#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "lit_sft/strategy.h"

namespace lit_sft {

/// A strategy of `{"class_path": "TopP", "init_args": {"top_p": 0.8}}`; `where` names the file or option in errors.
///
/// @throws UserError for an unknown name or option, or a value out of range.
Strategy parse_strategy(const nlohmann::json& given, std::string_view where);

/// Sets one option by its name in `init_args`, as it is written on a command line (`top_p`, `0.8`).
void set_option(Strategy& strategy, std::string_view name, const nlohmann::json& value, std::string_view where);

}  // namespace lit_sft
