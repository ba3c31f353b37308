// Damages the files of an exported folder, in memory and as they stand in the file, and uses what is still read: only
// a UserError may come of it. `lit-sft-mutate FOLDER NUMBER [SEED [RUNTIME]]`; of a build with sanitizers it finds
// more. With a runtime the network answers too, where the folder holds one. All in one process, and each file in what
// reads it: some hundred changes a second.

#include <array>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>

#include "generation.h"
#include "json_file.h"
#include "lit_sft/error.h"
#include "manifest.h"
#include "model.h"
#include "prompt.h"
#include "stream.h"
#include "unicode.h"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::size_t kMostBytes = std::size_t{1} << 28;
constexpr const char* kDeep = "<deep>";  // stands for brackets in brackets while values are changed

/// So many that who follows them by functions that call themselves runs out of stack.
std::string deep() { return std::string(400'000, '[') + std::string(400'000, ']'); }

class Mutator {
   public:
    explicit Mutator(unsigned seed) : chance_(seed) {}

    std::string mutated(const std::string& content, bool is_json) {
        if (!is_json || below(4) == 0) return damaged(content);
        auto parsed = json::parse(content);
        change(parsed);
        return lit_sft::replaced(parsed.dump(), '"' + std::string(kDeep) + '"', deep());
    }

   private:
    std::size_t below(std::size_t limit) { return chance_() % limit; }

    std::string damaged(std::string content) {
        for (std::size_t i = 1 + below(4); i > 0 && !content.empty(); --i)
            content[below(content.size())] = static_cast<char>(below(256));
        if (below(3) == 0) content.resize(below(content.size()));
        return content;
    }

    /// Another value somewhere.
    void change(json& value) {
        auto* at = &value;
        while (at->is_structured() && !at->empty() && below(8) > 0) {
            auto element = at->begin();
            std::advance(element, static_cast<std::ptrdiff_t>(below(at->size())));
            at = &*element;
        }
        static const std::array<json, 13> kValues = {
            nullptr,       true,          0, -1, 1, 255, 1e300, 9223372036854775807, "", "{content}{", kDeep,
            json::array(), json::object()};
        if (at->is_structured() && !at->empty() && below(2) == 0) {
            auto element = at->begin();
            std::advance(element, static_cast<std::ptrdiff_t>(below(at->size())));
            at->erase(element);
        } else if (at->is_number_integer() && below(2) == 0) {
            *at = at->get<std::int64_t>() + static_cast<std::int64_t>(below(64)) - 32;
        } else {
            *at = kValues[below(kValues.size())];
        }
    }

    std::mt19937 chance_;
};

void use_text(const fs::path& folder) {
    using namespace lit_sft;
    const auto tokenizer = Tokenizer::read(folder);
    const auto ids = tokenizer->encode("Hello\n\n  \xE4\xBD\xA0\xE5\xA5\xBD 123 <eom> <|blank_5|>");
    AnswerStream stream(*tokenizer);
    for (const auto id : ids) stream.push({&id, 1});
    TokenIds all(600);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<TokenId>(i);
    (void)tokenizer->polished(tokenizer->decode(all));
    const PromptFormat format(folder, *tokenizer);
    const auto said = [](const char* role, const char* content) { return Message{role, content, "", "", ""}; };
    std::vector<Message> messages = {said("system", "s"), said("user", "u"), said("assistant", ""), said("tool", "t")};
    for (int i = 0; i < 40; ++i)
        messages.insert(messages.end(), {said("assistant", "a"), said("user", "u u u u u u u")});
    for (const std::ptrdiff_t begin : {0, 1, 4}) {
        try {
            (void)format.encode({messages.begin() + begin, messages.end()});
        } catch (const BadConversation&) {
            continue;
        }
    }
}

/// A few tokens by each strategy.
void use_network(const fs::path& folder, const fs::path& runtime) {
    using namespace lit_sft;
    Model model(folder, {.runtime = runtime, .num_threads = 1, .max_rows = 2});
    const TokenIds prompt = {1, 2, 3};
    for (auto strategy : {model.generation().strategy, Strategy{}, Strategy{.kind = Strategy::Kind::sampling},
                          Strategy{.kind = Strategy::Kind::beam_search, .num_beams = 3}}) {
        strategy.max_new_tokens = 3;
        if (strategy.num_beams > 64) continue;  // rows as many as somebody asks for
        Request request;
        request.prompt = prompt;
        request.strategy = strategy;
        request.stop = model.generation().stop;
        (void)model.engine().answer(std::move(request), "prompt");
    }
    (void)model.engine().score(prompt, {4, 5}, "answer");
}

/// What reads the changed file.
void use(const fs::path& folder, const std::string& changed, const fs::path& runtime) {
    if (changed == "generation.json") {
        (void)lit_sft::read_generation(folder);
        if (!runtime.empty()) use_network(folder, runtime);
    } else if (changed == "manifest.json" || changed.starts_with("model")) {
        lit_sft::check_manifest(folder);
    } else {
        use_text(folder);
    }
}

void write(const fs::path& file, const std::string& content) { std::ofstream(file, std::ios::binary) << content; }

int run(const fs::path& folder, int number, unsigned seed, const fs::path& runtime) {
    Mutator mutator(seed);
    const auto copy = fs::temp_directory_path() / ("lit-sft-mutate-" + std::to_string(std::random_device()()));
    fs::copy(folder, copy, fs::copy_options::recursive);
    std::vector<std::string> files;
    for (const char* name : {"tokenizer/config.json", "tokenizer/text.model", "prompt.json", "generation.json",
                             "manifest.json", "model.onnx"})
        if (fs::exists(folder / name)) files.emplace_back(name);
    std::vector<std::string> contents;
    for (const auto& file : files) contents.push_back(lit_sft::read_file(folder / file, kMostBytes));
    int refused = 0;
    for (int i = 0; i < number; ++i) {
        const auto which = static_cast<std::size_t>(i) % files.size();
        write(copy / files[which], mutator.mutated(contents[which], files[which].ends_with(".json")));
        try {
            use(copy, files[which], runtime);
        } catch (const lit_sft::UserError&) {
            ++refused;
        }
        write(copy / files[which], contents[which]);
    }
    fs::remove_all(copy);
    std::cout << refused << " of " << number << " refused\n";
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const auto seed = argc > 3 ? static_cast<unsigned>(std::stoi(argv[3])) : 1;
    return run(argv[1], std::stoi(argv[2]), seed, argc > 4 ? argv[4] : "");
}
