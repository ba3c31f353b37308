#include "text_side.h"

#include <algorithm>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRoles[] = {"system", "user", "assistant", "tool"};

Message read_message(const JsonObject& given) {
    const auto text = [&](const char* key) { return given.has(key) ? given.text(key) : std::string(); };
    Message message{given.text("role"), text("content"), text("thoughts"), text("commands"), text("name")};
    if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles))
        throw UserError(given.where() + ": role must be system, user, assistant or tool");
    return message;
}

}  // namespace

TextSide::TextSide(const fs::path& folder) : folder_(folder) {
    std::error_code failed;
    if (fs::exists(folder / "tokenizer", failed)) tokenizer_ = Tokenizer::read(folder);
    if (tokenizer_ && fs::exists(folder / "prompt.json", failed)) format_.emplace(folder, *tokenizer_);
}

const Tokenizer& TextSide::tokenizer() const {
    if (!tokenizer_) throw UserError(folder_.string() + " holds no tokenizer/: the model takes ids only");
    return *tokenizer_;
}

const PromptFormat& TextSide::format() const {
    if (!format_) throw UserError(folder_.string() + " holds no prompt.json: the model takes ids only");
    return *format_;
}

TokenIds TextSide::prompt(const std::vector<Message>& messages, const std::string& where) const {
    try {
        return format().encode(messages);
    } catch (const BadConversation& bad) {
        throw UserError(where + ": the model's prompt format cannot write this: " + bad.what());
    }
}

std::pair<TokenIds, TokenIds> TextSide::answered(const std::vector<Message>& messages, const std::string& where) const {
    if (messages.empty() || messages.back().role != "assistant")
        throw UserError(where + ": the conversation does not end with an answer");
    const auto asked = prompt({messages.begin(), messages.end() - 1}, where);
    const auto whole = prompt(messages, where);
    const auto same = static_cast<std::ptrdiff_t>(asked.size());
    if (whole.size() < asked.size() || !std::equal(asked.begin(), asked.end(), whole.begin()))
        throw UserError(where + ": prompt and answer are longer than the context");
    TokenIds answer(whole.begin() + same, whole.end());
    answer.insert(answer.end(), format().closing().begin(), format().closing().end());
    return {asked, answer};
}

std::vector<Message> read_messages(const JsonObject& record) {
    std::vector<Message> messages;
    if (record.has("messages")) {
        for (const auto& each : record.objects("messages")) messages.push_back(read_message(each));
    } else {
        if (record.has("system")) messages.push_back({"system", record.text("system"), {}, {}, {}});
        messages.push_back({"user", record.text("prompt"), {}, {}, {}});
    }
    return messages;
}

std::optional<std::size_t> find_stop(const std::string& text, const std::vector<std::string>& stops) {
    std::optional<std::size_t> first;
    for (const auto& stop : stops) {
        const auto at = text.find(stop);
        if (at != std::string::npos && (!first || at < *first)) first = at;
    }
    return first;
}

}  // namespace lit_sft
