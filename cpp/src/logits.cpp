#include "logits.h"

#include <algorithm>
#include <cmath>

#include "lit_sft/error.h"

namespace lit_sft {

void refuse_nan(Logits logits) {
    if (std::any_of(logits.begin(), logits.end(), [](float logit) { return std::isnan(logit); }))
        throw UserError("the network gives no probabilities (NaN): its weights are damaged; export it again");
}

float log_probability(Logits logits, std::size_t token) {
    const double top = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<float>(logit - top));
    return static_cast<float>(logits[token] - top - std::log(sum));
}

}  // namespace lit_sft
