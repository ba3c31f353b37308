#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "json_file.h"
#include "lit_sft/message.h"
#include "tokenizer.h"

namespace lit_sft {

/// A conversation that the prompt format cannot write; `what` is a short, stable reason such as `tool-message`.
class BadConversation : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

/// A text with slots, such as `Human: {asked}`.
class Template {
   public:
    using Slots = std::map<std::string, std::string>;

    /// @throws UserError where the text has a slot that there is not, or a brace alone.
    Template(const std::string& text, const JsonObject& where);
    [[nodiscard]] std::string filled(const Slots& slots) const;

   private:
    struct Stretch {
        std::string text;  ///< or what stands for an empty slot
        std::string slot;
    };
    std::vector<Stretch> stretches_;
};

/// A piece of a prompt: a token, a text, or texts and tokens that are encoded in one go.
struct Piece {
    std::optional<TokenId> token;
    std::optional<Template> text;
    std::vector<Piece> joined;
    bool without_first_id = false;
    bool continues = false;  ///< encoded behind the text before it, if that keeps its ids
};

/// How a family writes a conversation: prompt.json of an exported folder. What its keys mean stands in
/// `lit_sft/export/prompt_data.py`, which reads it alike.
class PromptFormat {
   public:
    /// Reads FOLDER/prompt.json; the tokenizer must live as long.
    ///
    /// @throws UserError where it is missing or wrong.
    PromptFormat(const std::filesystem::path& folder, const Tokenizer& tokenizer);

    /// Ids that end where the assistant must speak, without as many of the oldest rounds as needed to fit.
    ///
    /// @throws BadConversation where it cannot be written.
    [[nodiscard]] TokenIds encode(const std::vector<Message>& messages) const;
    [[nodiscard]] const TokenIds& stop() const { return stop_; }        ///< ids that end an answer
    [[nodiscard]] const TokenIds& closing() const { return closing_; }  ///< behind the last answer of a conversation
    [[nodiscard]] const std::string& name() const { return name_; }

   private:
    using Pieces = std::vector<Piece>;
    using Messages = std::vector<Message>;

    /// Ids, and those that let the assistant speak.
    struct Written {
        TokenIds ids;
        TokenIds speak;
    };
    /// What stays in any case, and what may be left out, the oldest first.
    struct Parts {
        Messages kept;
        std::vector<Messages> droppable;
    };
    enum class Drop { rounds, user, turns };
    enum class CutLeft { nothing, history, all };
    class Writer;

    void read(const JsonObject& data);
    void read_fit(const JsonObject& fit);
    void check(const Messages& messages) const;
    [[nodiscard]] const Pieces& pieces(const std::string& name) const;
    [[nodiscard]] Parts parts(const Messages& messages) const;
    [[nodiscard]] Written written(const Parts& parts, std::size_t dropped) const;
    [[nodiscard]] TokenIds fitted(const Parts& parts, bool is_answered) const;
    [[nodiscard]] Written write_messages(Messages messages, Writer& writer) const;
    void write_turns(const Messages& messages, Writer& writer) const;
    [[nodiscard]] Template::Slots asked(std::span<const Message> read) const;

    const Tokenizer* tokenizer_;
    std::string name_;
    bool by_turn_ = false;
    bool whole_ = false;
    std::vector<std::string> refuse_;
    std::map<std::string, Pieces> pieces_;
    TokenIds stop_;
    TokenIds closing_;
    // By message.
    std::optional<std::string> default_system_;
    bool default_unless_first_ = false;
    bool needs_user_ = false;
    bool always_calls_ = false;
    bool always_speak_ = false;
    // By turn.
    std::int64_t first_number_ = 1;
    std::optional<std::string> system_end_;
    // What is left out.
    std::size_t most_ = 0;
    std::size_t most_answered_ = 0;
    Drop drop_ = Drop::rounds;
    bool counts_speak_ = true;
    CutLeft cut_left_ = CutLeft::nothing;
};

}  // namespace lit_sft
