#include "strategy_options.h"

#include <array>
#include <nlohmann/json.hpp>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

constexpr std::array<std::array<const char*, 2>, 9> kOptions = {{
    {"max_new_tokens", "tokens of an answer at most"},
    {"repetition_penalty", "above 1, tokens seen before become less likely"},
    {"no_repeat_ngram_size", "no sequence of so many tokens occurs twice"},
    {"num_beams", "of BeamSearch: answers followed at once"},
    {"length_penalty", "of BeamSearch: above 0 favors long answers"},
    {"temperature", "of TopK and TopP: below 1 sharpens"},
    {"top_k", "of TopK and TopP: tokens to draw from"},
    {"top_p", "of TopK and TopP: probability that the tokens to draw from must reach"},
    {"seed", "of TopK and TopP: decides what is drawn"},
}};

}  // namespace

void StrategyOptions::add_to(CLI::App& app) {
    app.add_option("--strategy", name_, "Greedy, BeamSearch, TopK or TopP; that of the model if not given");
    for (const auto& [name, description] : kOptions)
        app.add_option("--" + std::string(name), given_[name], description);
}

Strategy StrategyOptions::over(const Strategy& of_model) const {
    auto strategy = name_.empty() ? of_model : parse_strategy({{"class_path", name_}}, "--strategy");
    for (const auto& [name, text] : given_) {
        if (text.empty()) continue;
        auto value = nlohmann::json::parse(text, nullptr, false);
        if (value.is_discarded() || value.is_structured()) value = text;  // options are numbers or words
        set_option(strategy, name, value, "--" + name);
    }
    return strategy;
}

}  // namespace lit_sft
