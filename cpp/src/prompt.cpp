// Writing conversations by prompt.json.

#include "prompt.h"

#include <algorithm>

#include "lit_sft/error.h"
#include "unicode.h"

namespace lit_sft {
namespace {

using Messages = std::vector<Message>;

bool alternates(const Messages& messages) {
    bool is_asked = true;
    for (const auto& message : messages) {
        if (message.role == "system") continue;
        if (message.role != (is_asked ? "user" : "assistant")) return false;
        is_asked = !is_asked;
    }
    return true;
}

bool holds(const std::string& condition, const Messages& messages) {
    const auto has = [](std::span<const Message> looked_at, const char* role) {
        return std::ranges::any_of(looked_at, [&](const Message& each) { return each.role == role; });
    };
    if (condition == "tool-message") return has(messages, "tool");
    if (condition == "system-message") return has(messages, "system");
    if (condition == "system-message-not-first") return has(std::span(messages).subspan(1), "system");
    if (condition == "assistant-speaks-first") return messages[0].role == "assistant";
    return !alternates(messages);
}

/// Where turns end: behind each assistant, and at the end.
std::vector<std::span<const Message>> turns_of(std::span<const Message> messages) {
    std::vector<std::span<const Message>> turns;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < messages.size(); ++i) {
        if (messages[i].role != "assistant" && i + 1 < messages.size()) continue;
        turns.push_back(messages.subspan(begin, i + 1 - begin));
        begin = i + 1;
    }
    return turns;
}

Template::Slots slots_of(const Message& message) {
    const auto& content = message.content;
    return {{"content", content},
            {"line", content.empty() || content.ends_with('\n') ? content : content + "\n"},
            {"stripped", std::string(stripped(content))},
            {"name", message.name},
            {"thoughts", message.thoughts},
            {"commands", message.commands}};
}

}  // namespace

std::string Template::filled(const Slots& slots) const {
    std::string text;
    for (const auto& stretch : stretches_) {
        const auto found = stretch.slot.empty() ? slots.end() : slots.find(stretch.slot);
        text += found != slots.end() && !found->second.empty() ? found->second : stretch.text;
    }
    return text;
}

/// Ids so far, and text that is not encoded yet.
class PromptFormat::Writer {
   public:
    Writer(const Tokenizer& tokenizer, bool whole) : tokenizer_(&tokenizer), whole_(whole) {}

    void write(const Pieces& pieces, const Template::Slots& slots) {
        for (const auto& piece : pieces) {
            if (piece.token) {
                end();
                ids_.push_back(*piece.token);
                encoded_.clear();
            } else if (piece.text) {
                write_text(piece, piece.text->filled(slots));
            } else {
                end();
                std::vector<Part> parts;
                for (const auto& part : piece.joined)
                    parts.push_back(part.token ? Part{"", part.token} : Part{part.text->filled(slots), std::nullopt});
                add(tokenizer_->encode(parts));
            }
        }
    }

    /// Encode what is left.
    const TokenIds& end() {
        if (!text_.empty()) {
            add(tokenizer_->encode(text_));
            encoded_ += text_;
            text_.clear();
        }
        return ids_;
    }

    [[nodiscard]] std::size_t size() const { return ids_.size(); }

   private:
    void write_text(const Piece& piece, const std::string& text) {
        if (piece.continues) {
            end();
            const auto before = tokenizer_->encode(encoded_);
            const auto after = tokenizer_->encode(encoded_ + text);
            const bool keeps = before.size() <= after.size() && std::equal(before.begin(), before.end(), after.begin());
            add(keeps ? after : tokenizer_->encode(text), keeps ? before.size() : 0);
            encoded_ += text;
        } else if (whole_) {
            text_ += text;
        } else {
            add(tokenizer_->encode(text), piece.without_first_id ? 1 : 0);
        }
    }

    void add(const TokenIds& ids, std::size_t from = 0) {
        if (from < ids.size()) ids_.insert(ids_.end(), ids.begin() + static_cast<std::ptrdiff_t>(from), ids.end());
    }

    const Tokenizer* tokenizer_;
    bool whole_;
    TokenIds ids_;
    std::string text_;
    std::string encoded_;  // text behind the last token
};

const PromptFormat::Pieces& PromptFormat::pieces(const std::string& name) const {
    static const Pieces none;
    const auto found = pieces_.find(name);
    return found == pieces_.end() ? none : found->second;
}

TokenIds PromptFormat::encode(const Messages& messages) const {
    check(messages);
    return fitted(parts(messages), messages.back().role == "assistant");
}

void PromptFormat::check(const Messages& messages) const {
    for (const auto& message : messages)
        if (message.role != "system" && message.role != "user" && message.role != "assistant" && message.role != "tool")
            throw BadConversation("unknown-role");
    if (std::ranges::all_of(messages, [](const Message& each) { return each.role == "system"; }))
        throw BadConversation("nothing-to-answer");
    for (const auto& condition : refuse_)
        if (holds(condition, messages)) throw BadConversation(condition);
    for (const auto& message : messages)
        if (!by_turn_ && !pieces_.contains(message.role)) throw BadConversation(message.role + "-message");
}

TokenIds PromptFormat::fitted(const Parts& parts, bool is_answered) const {
    const auto most = is_answered ? most_answered_ : most_;
    const auto fits = [&](const Written& found) {
        return found.ids.size() + (counts_speak_ ? found.speak.size() : 0) <= most;
    };
    auto found = written(parts, 0);
    if (!fits(found) && parts.droppable.size() > 1) {
        // Bisection: encoding again for every round dropped would take minutes for a thousand of them.
        std::size_t low = 0;
        for (std::size_t high = parts.droppable.size() - 1; low < high;) {
            const auto middle = (low + high) / 2;
            if (fits(written(parts, middle))) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        found = written(parts, low);
    }
    const auto cut = [&](TokenIds& ids) {
        if (ids.size() > most) ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(most));
    };
    if (cut_left_ == CutLeft::history) cut(found.ids);
    found.ids.insert(found.ids.end(), found.speak.begin(), found.speak.end());
    if (cut_left_ == CutLeft::all) cut(found.ids);
    return std::move(found.ids);
}

PromptFormat::Parts PromptFormat::parts(const Messages& messages) const {
    Parts found;
    if (drop_ == Drop::turns) {
        for (const auto turn : turns_of(messages)) found.droppable.emplace_back(turn.begin(), turn.end());
        auto& first = found.droppable.front();
        const auto is_system = [](const Message& each) { return each.role == "system"; };
        std::ranges::copy_if(first, std::back_inserter(found.kept), is_system);
        std::erase_if(first, is_system);
        return found;
    }
    std::size_t begin = 0;  // of what may be left out
    if (drop_ == Drop::user) {
        begin = messages[0].role == "system" ? 1 : 0;
        found.kept.assign(messages.begin(), messages.begin() + static_cast<std::ptrdiff_t>(begin));
    }
    for (std::size_t i = begin; i < messages.size(); ++i) {
        const bool is_user = messages[i].role == "user";
        const bool starts = drop_ == Drop::user ? is_user || (i == begin && !needs_user_)
                                                : is_user && (i == 0 || messages[i - 1].role != "user");
        if (starts) found.droppable.emplace_back();
        if (!found.droppable.empty()) {
            found.droppable.back().push_back(messages[i]);
        } else if (drop_ == Drop::rounds) {
            found.kept.push_back(messages[i]);
        }
    }
    return found;
}

PromptFormat::Written PromptFormat::written(const Parts& parts, std::size_t dropped) const {
    auto messages = parts.kept;
    for (std::size_t i = dropped; i < parts.droppable.size(); ++i)
        messages.insert(messages.end(), parts.droppable[i].begin(), parts.droppable[i].end());
    Writer writer(*tokenizer_, whole_);
    writer.write(pieces("start"), {});
    if (!by_turn_) return write_messages(std::move(messages), writer);
    write_turns(messages, writer);
    return {writer.end(), {}};
}

PromptFormat::Written PromptFormat::write_messages(Messages messages, Writer& writer) const {
    if (default_system_) {
        const auto looked_at = std::span(messages).first(default_unless_first_ ? 1 : messages.size());
        if (std::ranges::none_of(looked_at, [](const Message& each) { return each.role == "system"; }))
            messages.insert(messages.begin(), {"system", *default_system_, "", "", ""});
    }
    bool has_results = false;
    for (std::size_t i = 0; i < messages.size(); ++i) {
        const auto& message = messages[i];
        const bool is_last = i + 1 == messages.size();
        const auto slots = slots_of(message);
        if (message.role != "assistant") {
            writer.write(pieces(message.role), slots);
            has_results = has_results || message.role == "tool";
        } else if (pieces_.contains("call") && message.content.empty() && !is_last && messages[i + 1].role == "tool") {
            writer.write(pieces("call"), slots);
        } else {
            if (!has_results && (always_calls_ || !message.thoughts.empty() || !message.commands.empty())) {
                writer.write(pieces("call"), slots);
                writer.write(pieces("no_results"), slots);
            }
            writer.write(pieces(is_last && pieces_.contains("answered") ? "answered" : "assistant"), slots);
            has_results = false;
        }
    }
    const bool is_asked = messages.empty() || messages.back().role != "assistant";
    // Formats of whole texts do not count these apart.
    const auto length = static_cast<std::ptrdiff_t>(writer.size());
    if (always_speak_ || (is_asked && (has_results || !always_calls_))) writer.write(pieces("speak"), {});
    const auto& ids = writer.end();
    return {{ids.begin(), ids.begin() + length}, {ids.begin() + length, ids.end()}};
}

void PromptFormat::write_turns(const Messages& messages, Writer& writer) const {
    const auto turns = turns_of(messages);
    for (std::size_t i = 0; i < turns.size(); ++i) {
        const bool is_last = i + 1 == turns.size();
        const bool is_answered = turns[i].back().role == "assistant";
        auto slots = asked(turns[i].first(turns[i].size() - (is_answered ? 1 : 0)));
        slots["n"] = std::to_string(first_number_ + static_cast<std::int64_t>(i));
        const bool is_alone = turns.size() == 1 && pieces_.contains("alone");
        const bool is_later = i > 0 && pieces_.contains("ask_later");
        writer.write(pieces(is_alone ? "alone" : is_later ? "ask_later" : "ask"), slots);
        if (is_last) {
            writer.end();
            writer.write(pieces("end"), {});
        }
        if (is_answered)
            writer.write(pieces(is_last && pieces_.contains("answered") ? "answered" : "answer"),
                         slots_of(turns[i].back()));
    }
}

Template::Slots PromptFormat::asked(std::span<const Message> read) const {
    std::string system;
    std::string lines;
    bool is_first = true;
    for (const auto& message : read) {
        if (system_end_ && message.role == "system") {
            system += message.content + *system_end_;
            continue;
        }
        lines += (is_first ? "" : "\n") + message.content;
        is_first = false;
    }
    return {{"system", system}, {"asked", lines}};
}

}  // namespace lit_sft
