#include "strategy.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

using nlohmann::json;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMost = 1e9;  // of anything that is counted

[[noreturn]] void refuse(std::string_view where, std::string_view name, const json& value, std::string_view rule) {
    throw UserError(std::string(where) + ": " + std::string(name) + " is " +
                    value.dump(-1, ' ', false, json::error_handler_t::replace) + "; it must be " + std::string(rule));
}

/// What a strategy of Python's class of this name is before its options are set.
Strategy defaults(const std::string& name, std::string_view where) {
    if (name == "Greedy") return {};
    if (name == "BeamSearch") return {.kind = Strategy::Kind::beam_search, .num_beams = 4};
    if (name == "TopK") return {.kind = Strategy::Kind::sampling, .top_k = 50};
    if (name == "TopP") return {.kind = Strategy::Kind::sampling, .top_p = 0.9};
    throw UserError(std::string(where) + ": unknown strategy " + name +
                    "; it must be Greedy, BeamSearch, TopK or TopP");
}

std::size_t count(const json& value, std::size_t least, std::string_view name, std::string_view where) {
    const auto rule = "a whole number of at least " + std::to_string(least);
    if (!value.is_number()) refuse(where, name, value, rule);
    const auto number = value.get<double>();
    if (!(number >= static_cast<double>(least) && number <= kMost && std::floor(number) == number))
        refuse(where, name, value, rule);
    return static_cast<std::size_t>(number);
}

/// A number above `low` and not above `high`.
double number(const json& value, double low, double high, std::string_view name, std::string_view where,
              std::string_view rule) {
    if (!value.is_number()) refuse(where, name, value, rule);
    const auto found = value.get<double>();
    if (!(found > low && found <= high && std::isfinite(found))) refuse(where, name, value, rule);
    return found;
}

bool set_sampling_option(Strategy& strategy, std::string_view name, const json& value, std::string_view where) {
    if (name == "temperature") {
        strategy.temperature = number(value, 0, kInfinity, name, where, "above 0, and finite");
    } else if (name == "top_p") {
        strategy.top_p = number(value, 0, 1, name, where, "above 0 and at most 1");
    } else if (name == "top_k") {
        strategy.top_k = count(value, 1, name, where);
    } else if (name == "seed") {
        // A number above 2^63 would turn negative.
        if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX))
            refuse(where, name, value, "a whole number of 64 bits");
        strategy.seed = value.get<std::int64_t>();
    } else {
        return false;
    }
    return true;
}

bool set_beam_option(Strategy& strategy, std::string_view name, const json& value, std::string_view where) {
    if (name == "num_beams") {
        strategy.num_beams = count(value, 2, name, where);
    } else if (name == "length_penalty") {
        strategy.length_penalty = number(value, -kInfinity, kInfinity, name, where, "finite");
    } else {
        return false;
    }
    return true;
}

}  // namespace

void set_option(Strategy& strategy, std::string_view name, const json& value, std::string_view where) {
    if (name == "max_new_tokens") {
        strategy.max_new_tokens = count(value, 1, name, where);
    } else if (name == "repetition_penalty") {
        strategy.repetition_penalty = number(value, 0, kInfinity, name, where, "above 0, and finite");
    } else if (name == "no_repeat_ngram_size") {
        strategy.no_repeat_ngram_size = count(value, 0, name, where);
    } else {
        const bool is_known =
            (strategy.kind == Strategy::Kind::sampling && set_sampling_option(strategy, name, value, where)) ||
            (strategy.kind == Strategy::Kind::beam_search && set_beam_option(strategy, name, value, where));
        if (!is_known) throw UserError(std::string(where) + ": the strategy has no option " + std::string(name));
    }
}

Strategy parse_strategy(const json& given, std::string_view where) {
    if (!given.is_object() || !given.contains("class_path") || !given["class_path"].is_string())
        throw UserError(std::string(where) + " is not an object with a class_path");
    const auto path = given["class_path"].get<std::string>();
    auto strategy = defaults(path.substr(path.rfind('.') + 1), where);
    const auto options = given.value("init_args", json::object());
    if (!options.is_object()) throw UserError(std::string(where) + ": init_args is not an object");
    for (const auto& [name, value] : options.items())
        if (name != "name") set_option(strategy, name, value, where);
    return strategy;
}

}  // namespace lit_sft
