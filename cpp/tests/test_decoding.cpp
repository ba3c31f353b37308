// What Python recorded (tests/cpp/record_decoding.py) comes out of the C++ strategies token for token.

#include <doctest/doctest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "chooser.h"
#include "lit_sft/error.h"
#include "processors.h"
#include "random.h"

using namespace lit_sft;
using nlohmann::json;

namespace {

const json& recorded() {
    static const json found = json::parse(std::ifstream(LIT_SFT_GOLDEN "/decoding/decoding.json"));
    return found;
}

/// Follows the table of logits until the answer is done.
TokenIds decode(const json& strategy, const TokenIds& prompt, const TokenIds& stop) {
    const auto table = recorded()["table"].get<std::vector<std::vector<float>>>();
    const auto chooser = make_chooser(parse_strategy(strategy, "test"), prompt, stop, recorded()["room"]);
    TokenIds last = {prompt.back()};
    while (!chooser->is_done()) {
        std::vector<Logits> rows;
        for (const auto token : last) rows.emplace_back(table[static_cast<std::size_t>(token)]);
        last = chooser->choose(rows).tokens;
    }
    return chooser->answer().ids;
}

}  // namespace

TEST_CASE("random numbers are those of Python for the same text") {
    for (const auto& stream : recorded()["streams"]) {
        Random random(stream["seed"].get<std::string>());
        CHECK(random.random() == stream["first"].get<double>());
        for (int i = 0; i < 698; ++i) random.random();
        CHECK(random.random() == stream["last"].get<double>());
    }
}

TEST_CASE("every strategy chooses the tokens that Python chooses") {
    for (const auto& one : recorded()["cases"]) {
        CAPTURE(one.dump());
        CHECK(decode(one["strategy"], one["prompt"], one["stop"]) == one["ids"].get<TokenIds>());
    }
}

TEST_CASE("log-probabilities are of the network itself, whatever the strategy makes of it") {
    const std::vector<float> logits = {0.0F, 1.0F, 2.0F};
    const std::vector<Logits> rows = {logits};
    const auto strategy = parse_strategy({{"class_path", "TopK"}, {"init_args", {{"top_k", 1}}}}, "test");
    const auto chooser = make_chooser(strategy, {0}, {1}, 5, true);
    chooser->choose(rows);
    CHECK(chooser->answer().ids == TokenIds{2});
    CHECK(chooser->answer().logprobs.front() == doctest::Approx(-0.4076F));
}

TEST_CASE("logits that hold NaN are refused") {
    const std::vector<float> logits = {0.0F, NAN};
    const std::vector<Logits> rows = {logits};
    CHECK_THROWS_AS(make_chooser({}, {0}, {1}, 5)->choose(rows), UserError);
}

TEST_CASE("a draw follows the probabilities") {
    const std::vector<float> scores = {std::log(0.1F), std::log(0.2F), std::log(0.7F)};
    Random random("distribution");
    std::vector<double> counts(3);
    for (int i = 0; i < 10000; ++i) ++counts[draw(scores, random.random())];
    double chi_square = 0;
    for (std::size_t i = 0; i < 3; ++i) {
        const auto expected = 10000 * std::exp(scores[i]);
        chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    CHECK(chi_square < 13.8);  // two degrees of freedom, p = 0.001
}

TEST_CASE("a strategy out of range is refused in a line that names the option") {
    const auto refused = [](const char* given) {
        try {
            parse_strategy(json::parse(given), "generation.json");
        } catch (const UserError& error) {
            return std::string(error.what());
        }
        return std::string("accepted");
    };
    CHECK(refused(R"({"class_path": "TopP", "init_args": {"top_p": 1.5}})") ==
          "generation.json: top_p is 1.5; it must be above 0 and at most 1");
    CHECK(refused(R"({"class_path": "TopK", "init_args": {"top_k": 0}})").find("at least 1") != std::string::npos);
    CHECK(refused(R"({"class_path": "Greedy", "init_args": {"temperature": 1}})") ==
          "generation.json: the strategy has no option temperature");
    CHECK(refused(R"({"class_path": "Dice"})").find("Greedy, BeamSearch, TopK or TopP") != std::string::npos);
    CHECK(refused(R"({"class_path": "BeamSearch", "init_args": {"num_beams": 1e300}})") != "accepted");
    CHECK(refused(R"([])") == "generation.json is not an object with a class_path");
}
