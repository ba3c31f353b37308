#pragma once

#include <cstddef>

#include "chooser.h"

namespace lit_sft {

/// @throws UserError where there is NaN, which only damaged weights give.
void refuse_nan(Logits logits);

/// Natural logarithm of the probability of a token.
float log_probability(Logits logits, std::size_t token);

}  // namespace lit_sft
