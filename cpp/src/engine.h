#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "chooser.h"
#include "network.h"

namespace lit_sft {

/// Why an answer ended: as Python's `Answer.finish_reason`, and two of our own.
enum class FinishReason { stop, length, prompt_too_long, canceled, failed };

const char* name(FinishReason reason);

struct Answer {
    ChosenTokens tokens;
    FinishReason reason = FinishReason::stop;
    std::string error;           ///< where it failed
    std::size_t num_reused = 0;  ///< tokens of the prompt that an earlier one had left in the cache
};

/// An answer that is wanted. The functions are called by whoever calls `Engine::step`, and do not throw.
struct Request {
    TokenIds prompt;
    Strategy strategy;
    TokenIds stop;  ///< tokens that end an answer
    bool wants_logprobs = false;
    /// Sees the answer after each token, and between pieces of a long prompt; false ends it.
    std::function<bool(const ChosenTokens&)> goes_on;
    std::function<void(const Answer&)> done;
};

/// Limits of a model, and of what is made of it.
struct EngineOptions {
    std::size_t context_length = 2048;  ///< tokens of prompt and answer together
    std::size_t max_rows = 1;           ///< answers that are written at once; beam search takes a row a beam
    TokenId prefix_end_id = -1;         ///< the first of these ends the prefix, where the graph has one
};

/// Answers several prompts at once (continuous batching): each step reads one token of every answer that is being
/// written, and a piece of one prompt that is not read yet. Rows of the cache are taken when an answer begins and given
/// back when it ends; what they hold stays, so that a prompt that begins alike, as the next turn of a chat does, is
/// read from where it differs. For one thread.
class Engine {
   public:
    Engine(Network& network, const EngineOptions& options);
    ~Engine();

    /// Puts a request at the end of the queue.
    ///
    /// @param where names it in errors.
    /// @throws UserError where the prompt is empty, or holds what is not in the vocabulary.
    void submit(Request request, const std::string& where);

    /// Requests that are being answered.
    [[nodiscard]] std::size_t num_running() const { return running_.size(); }

    /// Does one step of all that is under way; false if there is nothing to do.
    bool step();

    /// An answer to one prompt, alone.
    ///
    /// @throws UserError as `submit`, and where it failed.
    Answer answer(Request request, const std::string& where);

    /// Log-probabilities of an answer's tokens behind a prompt, by the network itself.
    ///
    /// @throws UserError where they are longer than the context, or one is empty.
    std::vector<float> score(const TokenIds& prompt, const TokenIds& answer, const std::string& where);

   private:
    struct Sequence;
    struct Row {
        TokenIds tokens;            // in the cache
        Sequence* owner = nullptr;  // none: idle, its tokens may be of use
        std::size_t index = 0;      // among the rows of the owner
        std::size_t last_used = 0;
    };

    void admit();
    [[nodiscard]] bool take_rows(Sequence& sequence);
    [[nodiscard]] std::size_t take_first_row(Sequence& sequence);
    [[nodiscard]] std::size_t oldest_idle() const;
    [[nodiscard]] std::size_t num_idle() const;
    void read_prompt(Sequence& sequence);
    void read_next();
    void advance(Sequence& sequence, std::span<const Logits> logits);
    void activate(Sequence& sequence);
    void finish(Sequence& sequence, FinishReason reason, std::string error = {});
    void release(Sequence& sequence);
    void move_row(std::size_t from, std::size_t to);
    void reserve_tokens(std::size_t tokens);
    void reserve_rows(std::size_t rows);
    void check_tokens(const TokenIds& ids, const std::string& where) const;
    [[nodiscard]] std::vector<std::size_t> lengths() const;
    [[nodiscard]] std::int64_t prefix_length(const TokenIds& ids) const;
    [[nodiscard]] std::size_t piece_end(std::size_t start, std::size_t total, std::int64_t prefix_length) const;

    Network& network_;
    EngineOptions options_;
    std::vector<Row> rows_;
    std::size_t num_active_ = 0;  // rows at the front whose answers are being written
    std::deque<std::unique_ptr<Sequence>> waiting_;
    std::vector<std::unique_ptr<Sequence>> running_;
    std::size_t clock_ = 0;
};

}  // namespace lit_sft
