#pragma once

#include <filesystem>
#include <iosfwd>

namespace lit_sft {

/// Lines of JSON to lines of JSON: {"text"} -> {"ids"}.
void tokenize(const std::filesystem::path& folder, std::istream& in, std::ostream& out);
/// {"messages": [{"role", "content", ...}]} -> {"ids"}, or {"refused"} with the reason.
void write_prompts(const std::filesystem::path& folder, std::istream& in, std::ostream& out);
/// {"ids"} -> {"text"}: the answer; {"shown"}: what a chat makes of it; {"pieces"}: that, token by token.
void decode(const std::filesystem::path& folder, std::istream& in, std::ostream& out);

}  // namespace lit_sft
