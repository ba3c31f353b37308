#include "model_verbs.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "answering.h"
#include "chat.h"
#include "lit_sft/error.h"
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

TokenIds ids_of(const JsonObject& record, const char* key) { return record.numbers(key, 0, kMostTokens); }

struct ChatVerb {
    ModelArguments model{1};
    StrategyOptions strategy;
    std::string system;

    void run() const {
        const auto opened = model.open();
        Chat chat(*opened, strategy.over(opened->generation().strategy), system);
        chat.run(std::cin, std::cout);
    }
};

struct Generate {
    ModelArguments model{8};
    StrategyOptions strategy;
    std::string prompts = "-";
    std::vector<std::string> stop_texts;
    bool are_ids = false;
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
            Request request;
            request.prompt = ids_of_prompt(*opened, JsonObject::parse(lines[i].second, where));
            request.strategy = chosen;
            request.stop = opened->generation().stop;
            request.wants_logprobs = has_logprobs;
            if (!stop_texts.empty())
                request.goes_on = [&](const ChosenTokens& answer) {
                    return is_unstopped(answer, opened->text().tokenizer(), stop_texts);
                };
            request.done = [&, i, where, num_prompt = request.prompt.size()](const Answer& answer) {
                if (answer.reason == FinishReason::failed) throw UserError(where + ": " + answer.error);
                rows[i] = row_of(*opened, answer, num_prompt);
                for (; num_written < rows.size() && rows[num_written]; rows[num_written++].reset())
                    std::cout << rows[num_written]->dump(-1, ' ', false, json::error_handler_t::replace) << '\n'
                              << std::flush;
            };
            opened->engine().submit(std::move(request), where);
        }
        while (opened->engine().step()) {
        }
    }

   private:
    [[nodiscard]] TokenIds ids_of_prompt(const Model& opened, const JsonObject& record) const {
        if (are_ids) return ids_of(record, "ids");
        return opened.text().prompt(read_messages(record), record.where());
    }

    [[nodiscard]] json row_of(const Model& opened, const Answer& answer, std::size_t num_prompt) const {
        json row = {{"prompt_tokens", num_prompt},
                    {"answer_tokens", answer.tokens.ids.size()},
                    {"finish_reason", name(answer.reason)}};
        if (are_ids) {
            row["ids"] = answer.tokens.ids;
        } else {
            const auto [text, reason] = text_of(answer, opened.text().tokenizer(), stop_texts);
            row["answer"] = text;
            row["finish_reason"] = name(reason);
        }
        if (has_logprobs) row["logprobs"] = answer.tokens.logprobs;
        return row;
    }
};

struct Score {
    ModelArguments model{1};
    std::string answers = "-";
    bool are_ids = false;

    void run() const {
        const auto opened = model.open();
        for (const auto& [number, line] : read_lines(answers)) {
            const auto where = answers + ":" + std::to_string(number);
            const auto record = JsonObject::parse(line, where);
            const auto [prompt, answer] = are_ids ? std::pair(ids_of(record, "ids"), ids_of(record, "answer_ids"))
                                                  : opened->text().answered(read_messages(record), where);
            const auto logprobs = opened->engine().score(prompt, answer, where);
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
            Request request;
            request.prompt = std::move(ids);
            request.strategy = greedy;
            request.goes_on = goes_on;
            opened.engine().submit(std::move(request), "bench");
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
    const auto [chat, talk] = add_verb<ChatVerb>(app, "chat", "talk with a model");
    talk->strategy.add_to(*chat);
    chat->add_option("--system", talk->system, "system message");

    const auto [generate, prompts] =
        add_verb<Generate>(app, "generate", "answer prompts of a file, JSON lines in and out");
    prompts->strategy.add_to(*generate);
    generate->add_option("--prompts", prompts->prompts, "file of prompts, - for standard input");
    generate->add_option("--stop", prompts->stop_texts,
                         "text that ends an answer, and is not part of it; several times");
    generate->add_flag("--ids", prompts->are_ids, "token ids instead of text, in and out");
    generate->add_flag("--logprobs", prompts->has_logprobs, "with the log-probability of each token");

    const auto [score, answers] = add_verb<Score>(app, "score", "log-probabilities of given answers");
    score->add_option("--answers", answers->answers, "file of prompts with answers, - for standard input");
    score->add_flag("--ids", answers->are_ids, "ids and answer_ids instead of text");

    const auto [bench, speed] = add_verb<Bench>(app, "bench", "tokens a second");
    bench->add_option("--prompt_tokens", speed->num_prompt, "tokens of each prompt")->check(CLI::Range(1, 1 << 20));
    bench->add_option("--answer_tokens", speed->num_new, "tokens of each answer")->check(CLI::Range(2, 1 << 20));
    bench->add_option("--answers", speed->num_answers, "answers at once")->check(CLI::Range(1, 1024));
    bench->add_option("--rounds", speed->num_rounds, "rounds, of which the median counts")->check(CLI::Range(1, 1000));
}

}  // namespace lit_sft
