#include "model_verbs.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "error.h"
#include "model_options.h"
#include "strategy_options.h"

namespace lit_sft {
namespace {

using nlohmann::json;

/// Lines of a file or of standard input that are not blank, with their numbers.
std::vector<std::pair<std::size_t, std::string>> read_lines(const std::string& file) {
    std::ifstream opened;
    if (file != "-") {
        opened.open(file);
        if (!opened) throw UserError(file + " cannot be read");
    }
    std::istream& stream = file == "-" ? std::cin : opened;
    std::vector<std::pair<std::size_t, std::string>> lines;
    std::string line;
    for (std::size_t number = 1; std::getline(stream, line); ++number)
        if (line.find_first_not_of(" \t\r") != std::string::npos) lines.emplace_back(number, line);
    return lines;
}

TokenIds ids_of(const json& record, const char* key, const std::string& where) {
    if (!record.is_object() || !record.contains(key) || !record[key].is_array())
        throw UserError(where + ": expected an object with " + key + ", a list of token ids");
    TokenIds ids;
    for (const auto& id : record[key]) {
        if (!id.is_number_integer()) throw UserError(where + ": " + key + " holds something else than token ids");
        ids.push_back(id.get<TokenId>());
    }
    return ids;
}

json row_of(const Answer& answer, std::size_t num_prompt, bool has_logprobs) {
    json row = {{"ids", answer.tokens.ids},
                {"finish_reason", name(answer.reason)},
                {"prompt_tokens", num_prompt},
                {"answer_tokens", answer.tokens.ids.size()}};
    if (has_logprobs) row["logprobs"] = answer.tokens.logprobs;
    return row;
}

struct Generate {
    ModelArguments model{8};
    StrategyOptions strategy;
    std::string prompts = "-";
    bool has_logprobs = false;

    void run() const {
        const auto opened = model.open();
        const auto chosen = strategy.over(opened->generation().strategy);
        std::vector<std::optional<json>> rows;
        std::size_t num_written = 0;
        const auto lines = read_lines(prompts);
        rows.resize(lines.size());
        for (std::size_t i = 0; i < lines.size(); ++i) {
            const auto where = prompts + ":" + std::to_string(lines[i].first);
            auto ids = ids_of(json::parse(lines[i].second, nullptr, false), "ids", where);
            const auto num_prompt = ids.size();
            const auto done = [&, i, num_prompt, where](const Answer& answer) {
                if (answer.reason == FinishReason::failed) throw UserError(where + ": " + answer.error);
                rows[i] = row_of(answer, num_prompt, has_logprobs);
                for (; num_written < rows.size() && rows[num_written]; rows[num_written++].reset())
                    std::cout << rows[num_written]->dump() << '\n' << std::flush;
            };
            opened->engine().submit({std::move(ids), chosen, opened->generation().stop, {}, done});
        }
        while (opened->engine().step()) {
        }
    }
};

struct Score {
    ModelArguments model{1};
    std::string answers = "-";

    void run() const {
        const auto opened = model.open();
        for (const auto& [number, line] : read_lines(answers)) {
            const auto where = answers + ":" + std::to_string(number);
            const auto record = json::parse(line, nullptr, false);
            const auto logprobs =
                opened->engine().score(ids_of(record, "ids", where), ids_of(record, "answer_ids", where));
            double sum = 0;
            for (const float logprob : logprobs) sum += logprob;
            const json row = {{"logprob", sum}, {"answer_tokens", logprobs.size()}, {"logprobs", logprobs}};
            std::cout << row.dump() << '\n' << std::flush;
        }
    }
};

/// Tokens a second of reading a prompt and of writing, medians of several rounds.
struct Bench {
    ModelArguments model{1};
    std::size_t num_prompt = 128;
    std::size_t num_new = 64;
    std::size_t num_answers = 1;
    std::size_t num_rounds = 5;

    struct Speed {
        double prefill;
        double decode;
    };

    void run() const {
        const auto opened = model.open();
        std::vector<double> prefill;
        std::vector<double> decode;
        for (std::size_t round = 0; round <= num_rounds; ++round) {
            const auto speed = measure(*opened, round);
            if (round == 0) continue;  // pages of the weights come in
            prefill.push_back(speed.prefill);
            decode.push_back(speed.decode);
        }
        const json row = {{"prefill_tokens_per_s", median(prefill)},
                          {"decode_tokens_per_s", median(decode)},
                          {"prompt_tokens", num_prompt},
                          {"answer_tokens", num_new},
                          {"answers_at_once", num_answers},
                          {"rounds", num_rounds},
                          {"threads", opened->num_threads()},
                          {"runtime", opened->runtime_version()}};
        std::cout << row.dump() << '\n';
    }

   private:
    [[nodiscard]] Speed measure(Model& opened, std::size_t round) const {
        using Clock = std::chrono::steady_clock;
        std::size_t num_begun = 0;
        Clock::time_point begun;
        const auto start = Clock::now();
        for (std::size_t i = 0; i < num_answers; ++i) {
            TokenIds ids;
            for (std::size_t at = 0; at < num_prompt; ++at)  // others each time, so that nothing is known already
                ids.push_back(static_cast<TokenId>((1 + at * 7919 + i * 104729 + round * 1299709) %
                                                   opened.generation().vocab_size));
            Strategy greedy;
            greedy.max_new_tokens = num_new;
            const auto goes_on = [&](const ChosenTokens& answer) {
                if (answer.ids.size() == 1 && ++num_begun == num_answers) begun = Clock::now();
                return true;
            };
            opened.engine().submit({std::move(ids), greedy, {}, goes_on, {}});
        }
        while (opened.engine().step()) {
        }
        const std::chrono::duration<double> reading = begun - start;
        const std::chrono::duration<double> writing = Clock::now() - begun;
        const auto answers = static_cast<double>(num_answers);
        return {static_cast<double>(num_prompt) * answers / reading.count(),
                static_cast<double>(num_new - 1) * answers / writing.count()};
    }

    static double median(std::vector<double> numbers) {
        std::sort(numbers.begin(), numbers.end());
        return numbers[numbers.size() / 2];
    }
};

template <class Verb>
std::pair<CLI::App*, std::shared_ptr<Verb>> add_verb(CLI::App& app, const char* name, const char* description) {
    auto* added = app.add_subcommand(name, description);
    auto verb = std::make_shared<Verb>();
    verb->model.add_to(*added);
    added->callback([verb] { verb->run(); });
    return {added, verb};
}

}  // namespace

void add_model_verbs(CLI::App& app) {
    const auto [generate, prompts] =
        add_verb<Generate>(app, "generate", "answer prompts of a file, JSON lines in and out");
    prompts->strategy.add_to(*generate);
    generate->add_option("--prompts", prompts->prompts, "file of prompts, - for standard input");
    generate->add_flag("--logprobs", prompts->has_logprobs, "with the log-probability of each token");

    const auto [score, answers] = add_verb<Score>(app, "score", "log-probabilities of given answers");
    score->add_option("--answers", answers->answers, "file of prompts with answers, - for standard input");

    const auto [bench, speed] = add_verb<Bench>(app, "bench", "tokens a second");
    bench->add_option("--prompt_tokens", speed->num_prompt, "tokens of each prompt")->check(CLI::Range(1, 1 << 20));
    bench->add_option("--answer_tokens", speed->num_new, "tokens of each answer")->check(CLI::Range(2, 1 << 20));
    bench->add_option("--answers", speed->num_answers, "answers at once")->check(CLI::Range(1, 1024));
    bench->add_option("--rounds", speed->num_rounds, "rounds, of which the median counts")->check(CLI::Range(1, 1000));
}

}  // namespace lit_sft
