#pragma once

#include <cstdint>
#include <vector>

namespace lit_sft {

using TokenId = std::int64_t;  // what the graph reads
using TokenIds = std::vector<TokenId>;

constexpr TokenId kMostTokens = TokenId{1} << 24;  // ids are below; no vocabulary comes near it

}  // namespace lit_sft
