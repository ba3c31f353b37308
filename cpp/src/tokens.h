#pragma once

#include <cstdint>
#include <vector>

namespace lit_sft {

using TokenId = std::int64_t;  // what the graph reads
using TokenIds = std::vector<TokenId>;

}  // namespace lit_sft
