#include "text_verbs.h"

#include <functional>
#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>

#include "prompt.h"
#include "stream.h"

namespace lit_sft {
namespace {

using nlohmann::json;

void each_line(std::istream& in, std::ostream& out, const std::function<json(const JsonObject&)>& answer) {
    std::string line;
    for (std::size_t number = 1; std::getline(in, line); ++number) {
        if (line.empty()) continue;
        out << answer(JsonObject::parse(line, "line " + std::to_string(number))).dump() << '\n' << std::flush;
    }
}

Message read_message(const JsonObject& content) {
    const auto text = [&](const char* key) { return content.has(key) ? content.text(key) : std::string(); };
    return {content.text("role"), text("content"), text("thoughts"), text("commands"), text("name")};
}

}  // namespace

void tokenize(const std::filesystem::path& folder, std::istream& in, std::ostream& out) {
    const auto tokenizer = Tokenizer::read(folder);
    each_line(in, out, [&](const JsonObject& line) { return json{{"ids", tokenizer->encode(line.text("text"))}}; });
}

void write_prompts(const std::filesystem::path& folder, std::istream& in, std::ostream& out) {
    const auto tokenizer = Tokenizer::read(folder);
    const PromptFormat format(folder, *tokenizer);
    each_line(in, out, [&](const JsonObject& line) {
        std::vector<Message> messages;
        for (const auto& each : line.objects("messages")) messages.push_back(read_message(each));
        try {
            return json{{"ids", format.encode(messages)}};
        } catch (const BadConversation& bad) {
            return json{{"refused", bad.what()}};
        }
    });
}

void decode(const std::filesystem::path& folder, std::istream& in, std::ostream& out) {
    const auto tokenizer = Tokenizer::read(folder);
    each_line(in, out, [&](const JsonObject& line) {
        const auto ids = line.numbers("ids", 0, kMostTokens);
        const auto text = tokenizer->decode(ids);
        AnswerStream stream(*tokenizer);
        std::vector<std::string> pieces;
        pieces.reserve(ids.size() + 1);
        for (const auto id : ids) pieces.push_back(stream.push({&id, 1}));
        pieces.push_back(stream.finish());
        return json{{"text", text}, {"shown", tokenizer->polished(text)}, {"pieces", pieces}};
    });
}

}  // namespace lit_sft
