#include "engine.h"

#include <algorithm>
#include <utility>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

// Tokens of a prompt that are read at once: bounds what attention takes, and how long other answers wait.
constexpr std::size_t kPiece = 256;

// Tokens that a cache begins with.
constexpr std::size_t kFirstCapacity = 64;

// Logits of so many places are asked for at once where an answer is scored.
constexpr std::size_t kScoredAtOnce = 32;

std::size_t num_shared(const TokenIds& one, const TokenIds& other) {
    const auto [end, _] = std::mismatch(one.begin(), one.end(), other.begin(), other.end());
    return static_cast<std::size_t>(end - one.begin());
}

}  // namespace

const char* name(FinishReason reason) {
    switch (reason) {
        case FinishReason::stop: return "stop";
        case FinishReason::length: return "length";
        case FinishReason::prompt_too_long: return "prompt-too-long";
        case FinishReason::canceled: return "canceled";
        case FinishReason::failed: return "failed";
    }
    return "";
}

/// A request and how far it is.
struct Engine::Sequence {
    Request request;
    std::unique_ptr<Chooser> chooser;
    std::vector<std::size_t> rows;  // of the cache; the first alone reads the prompt
    std::int64_t prefix_length = -1;
    std::size_t num_read = 0;  // of the prompt
    std::size_t num_reused = 0;
    NextTokens next;  // chosen and not yet read
    bool is_active = false;
    bool is_finished = false;
    bool is_spread = false;  // whether all rows hold the prompt

    [[nodiscard]] bool goes_on() const { return !request.goes_on || request.goes_on(chooser->answer()); }
};

Engine::Engine(Network& network, const EngineOptions& options) : network_(network), options_(options) {}

Engine::~Engine() = default;

void Engine::submit(Request request, const std::string& where) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = std::move(request);
    const auto& asked = sequence->request;
    check_tokens(asked.prompt, where);
    if (asked.prompt.empty()) throw UserError(where + ": the prompt is empty");
    const auto left = options_.context_length - std::min(options_.context_length, asked.prompt.size());
    const auto room = std::min(asked.strategy.max_new_tokens, left);
    sequence->prefix_length = prefix_length(asked.prompt);
    if (room > 0)
        sequence->chooser = make_chooser(asked.strategy, asked.prompt, asked.stop, room, asked.wants_logprobs);
    waiting_.push_back(std::move(sequence));
}

bool Engine::step() {
    ++clock_;
    admit();
    for (const auto& sequence : running_)
        if (!sequence->is_active) {
            read_prompt(*sequence);
            break;
        }
    if (num_active_ > 0) read_next();
    std::erase_if(running_, [](const auto& sequence) { return sequence->is_finished; });
    return !running_.empty() || !waiting_.empty();
}

Answer Engine::answer(Request request, const std::string& where) {
    Answer found;
    request.done = [&](const Answer& answer) { found = answer; };
    submit(std::move(request), where);
    while (step()) {
    }
    if (found.reason == FinishReason::failed) throw UserError(where + ": " + found.error);
    return found;
}

/// Lets those who wait begin while there are rows for them.
void Engine::admit() {
    while (!waiting_.empty()) {
        auto& first = *waiting_.front();
        if (!first.chooser) {
            finish(first, FinishReason::prompt_too_long);
        } else if (!first.goes_on()) {
            finish(first, FinishReason::canceled);
        } else {
            try {
                if (!take_rows(first)) return;
                running_.push_back(std::move(waiting_.front()));
            } catch (const UserError& error) {
                finish(first, FinishReason::failed, error.what());
            }
        }
        waiting_.pop_front();
    }
}

/// False if too few are idle; they will be.
bool Engine::take_rows(Sequence& sequence) {
    const auto wanted = sequence.request.strategy.num_beams;
    const auto most = std::max(options_.max_rows, wanted);
    const bool has_empty = std::any_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.tokens.empty(); });
    const auto num_taken = rows_.size() - num_idle();
    if (num_taken + wanted > most) return false;
    // A new row rather than what an earlier prompt has left, which may be of use.
    const auto needed = num_taken + wanted;
    if (needed > rows_.size() || (!has_empty && rows_.size() < options_.max_rows))
        reserve_rows(std::max(needed, std::min(options_.max_rows, std::max<std::size_t>(1, 2 * rows_.size()))));
    reserve_tokens(sequence.request.prompt.size() + 1);
    sequence.rows = {take_first_row(sequence)};
    while (sequence.rows.size() < wanted) {
        const auto row = oldest_idle();
        rows_[row].tokens.clear();
        rows_[row].owner = &sequence;
        rows_[row].index = sequence.rows.size();
        sequence.rows.push_back(row);
    }
    return true;
}

/// An idle row that holds as much of the prompt as any row does, and of it no more than is right.
std::size_t Engine::take_first_row(Sequence& sequence) {
    const auto& prompt = sequence.request.prompt;
    std::size_t source = 0;
    std::size_t shared = 0;
    for (std::size_t row = 0; row < rows_.size(); ++row) {
        const auto same = num_shared(prompt, rows_[row].tokens);
        // What sees itself in both directions is of use as a whole only.
        if (std::cmp_less_equal(same, sequence.prefix_length)) continue;
        if (same > shared) source = row, shared = same;
    }
    shared = std::min(shared, prompt.size() - 1);  // the last gives the logits
    const auto& held = rows_[source];
    auto target = source;
    if (held.owner || shared * 2 < held.tokens.size()) {
        target = oldest_idle();
        network_.cache().copy(source, target, 0, shared);
    }
    auto& row = rows_[target];
    row.tokens.assign(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(shared));
    row.owner = &sequence;
    row.index = 0;
    sequence.num_read = sequence.num_reused = shared;
    return target;
}

std::size_t Engine::oldest_idle() const {
    auto oldest = rows_.size();
    for (std::size_t row = 0; row < rows_.size(); ++row) {
        if (rows_[row].owner) continue;
        const auto age = [&](std::size_t at) { return rows_[at].tokens.empty() ? 0 : rows_[at].last_used; };
        if (oldest == rows_.size() || age(row) < age(oldest)) oldest = row;
    }
    return oldest;
}

std::size_t Engine::num_idle() const {
    return static_cast<std::size_t>(std::count_if(rows_.begin(), rows_.end(), [](auto& row) { return !row.owner; }));
}

/// The next piece of a prompt; behind the last, the first token is chosen.
void Engine::read_prompt(Sequence& sequence) {
    if (!sequence.goes_on()) return finish(sequence, FinishReason::canceled);
    const auto& prompt = sequence.request.prompt;
    auto& row = rows_[sequence.rows.front()];
    const auto start = sequence.num_read;
    const auto end = piece_end(start, prompt.size(), sequence.prefix_length);
    const auto ids = std::span(prompt).subspan(start, end - start);
    const std::vector<std::size_t> wanted = {ids.size() - 1};
    std::span<const Logits> logits;
    try {
        logits = network_.read(sequence.rows.front(), {ids, start, sequence.prefix_length}, wanted);
    } catch (const UserError& error) {
        return finish(sequence, FinishReason::failed, error.what());
    }
    row.tokens.insert(row.tokens.end(), ids.begin(), ids.end());
    row.last_used = clock_;
    sequence.num_read = end;
    if (end == prompt.size()) advance(sequence, logits);
}

/// One token of every answer that is being written.
void Engine::read_next() {
    std::size_t longest = 0;
    for (std::size_t row = 0; row < num_active_; ++row) longest = std::max(longest, rows_[row].tokens.size());
    try {
        reserve_tokens(longest + 1);
    } catch (const UserError& error) {
        const auto capacity = network_.cache().capacity();
        for (const auto& sequence : running_)
            if (sequence->is_active && rows_[sequence->rows.front()].tokens.size() >= capacity)
                finish(*sequence, FinishReason::failed, error.what());
        return;
    }
    std::vector<RowPiece> pieces;
    for (std::size_t at = 0; at < num_active_; ++at) {
        auto& row = rows_[at];
        row.last_used = clock_;
        const auto& next = row.owner->next.tokens[row.index];
        pieces.push_back({std::span(&next, 1), row.tokens.size(), row.owner->prefix_length});
    }
    std::span<const Logits> logits;
    try {
        logits = network_.read_next(pieces);
    } catch (const UserError& error) {
        for (const auto& sequence : running_)
            if (sequence->is_active) finish(*sequence, FinishReason::failed, error.what());
        return;
    }
    for (std::size_t at = 0; at < num_active_; ++at) rows_[at].tokens.push_back(pieces[at].ids.front());
    // Those that end give their rows back and with that move others, so all choose before any ends.
    std::vector<Sequence*> sequences;
    for (const auto& sequence : running_)
        if (sequence->is_active) sequences.push_back(sequence.get());
    std::vector<std::vector<Logits>> own;
    for (const auto* sequence : sequences) {
        auto& rows = own.emplace_back();
        for (const auto row : sequence->rows) rows.push_back(logits[row]);
    }
    for (std::size_t i = 0; i < sequences.size(); ++i) advance(*sequences[i], own[i]);
}

/// Chooses what to read next, and makes the rows such as it continues them.
void Engine::advance(Sequence& sequence, std::span<const Logits> logits) {
    auto& chooser = *sequence.chooser;
    try {
        sequence.next = chooser.choose(logits);
    } catch (const UserError& error) {
        return finish(sequence, FinishReason::failed, error.what());
    }
    const bool goes_on = sequence.goes_on();
    if (chooser.is_done())
        return finish(sequence, chooser.answer().is_stopped ? FinishReason::stop : FinishReason::length);
    if (!goes_on) return finish(sequence, FinishReason::canceled);
    const auto& parents = sequence.next.parents;
    if (sequence.rows.size() > 1) {
        const auto length = rows_[sequence.rows.front()].tokens.size();
        const auto common = sequence.is_spread ? sequence.request.prompt.size() : 0;
        network_.cache().reorder(sequence.rows, parents, common, length);
        std::vector<TokenIds> tokens;
        tokens.reserve(parents.size());
        for (const auto parent : parents) tokens.push_back(rows_[sequence.rows[parent]].tokens);
        for (std::size_t i = 0; i < tokens.size(); ++i) rows_[sequence.rows[i]].tokens = std::move(tokens[i]);
        sequence.is_spread = true;
    }
    if (!sequence.is_active) activate(sequence);
}

/// Moves its rows behind those that are written.
void Engine::activate(Sequence& sequence) {
    for (std::size_t i = 0; i < sequence.rows.size(); ++i) move_row(sequence.rows[i], num_active_++);
    sequence.is_active = true;
}

void Engine::finish(Sequence& sequence, FinishReason reason, std::string error) {
    Answer answer;
    answer.reason = reason;
    answer.error = std::move(error);
    answer.num_reused = sequence.num_reused;
    if (sequence.chooser) answer.tokens = sequence.chooser->answer();
    release(sequence);
    sequence.is_finished = true;
    if (sequence.request.done) sequence.request.done(answer);
}

/// Its rows become idle, and stand behind those that are written.
void Engine::release(Sequence& sequence) {
    const auto num_rows = sequence.rows.size();
    for (std::size_t i = 0; i < num_rows; ++i) {
        const auto row = sequence.rows[i];
        if (sequence.is_active) move_row(row, --num_active_);
        rows_[sequence.rows[i]].owner = nullptr;
    }
    sequence.rows.clear();
}

/// Exchanges two rows of the cache, and tells their owners.
void Engine::move_row(std::size_t from, std::size_t to) {
    if (from == to) return;
    network_.cache().swap(from, to, std::max(rows_[from].tokens.size(), rows_[to].tokens.size()));
    std::swap(rows_[from], rows_[to]);
    for (const auto at : {from, to})
        if (rows_[at].owner) rows_[at].owner->rows[rows_[at].index] = at;
}

void Engine::reserve_tokens(std::size_t tokens) {
    auto capacity = network_.cache().capacity();
    if (tokens <= capacity) return;
    capacity = std::max(capacity, kFirstCapacity);
    while (capacity < tokens) capacity *= 2;
    capacity = std::max(tokens, std::min(capacity, options_.context_length));
    network_.cache().resize(std::max<std::size_t>(1, rows_.size()), capacity, lengths());
}

void Engine::reserve_rows(std::size_t rows) {
    network_.cache().resize(
        rows, std::max(network_.cache().capacity(), std::min(kFirstCapacity, options_.context_length)), lengths());
    rows_.resize(rows);
}

std::vector<std::size_t> Engine::lengths() const {
    std::vector<std::size_t> found;
    for (const auto& row : rows_) found.push_back(row.tokens.size());
    return found;
}

std::int64_t Engine::prefix_length(const TokenIds& ids) const {
    if (!network_.shape().has_prefix) return -1;
    const auto end = std::find(ids.begin(), ids.end(), options_.prefix_end_id);
    return end == ids.end() ? -1 : end - ids.begin();
}

/// What sees itself in both directions is read in one piece.
std::size_t Engine::piece_end(std::size_t start, std::size_t total, std::int64_t prefix_length) const {
    auto end = std::min(total, start + kPiece);
    if (std::cmp_less(start, prefix_length)) end = std::max(end, static_cast<std::size_t>(prefix_length));
    return std::min(end, total);
}

void Engine::check_tokens(const TokenIds& ids, const std::string& where) const {
    for (const auto token : ids)
        if (token < 0 || static_cast<std::size_t>(token) >= network_.shape().vocabulary)
            throw UserError(where + ": token " + std::to_string(token) + " is not in the vocabulary of " +
                            std::to_string(network_.shape().vocabulary));
}

std::vector<float> Engine::score(const TokenIds& prompt, const TokenIds& answer, const std::string& where) {
    if (prompt.empty() || answer.empty())
        throw UserError(where + ": a prompt and an answer to score need a token each");
    auto ids = prompt;
    ids.insert(ids.end(), answer.begin(), answer.end());
    if (ids.size() > options_.context_length)
        throw UserError(where + ": prompt and answer have " + std::to_string(ids.size()) + " tokens; the context has " +
                        std::to_string(options_.context_length));
    check_tokens(ids, where);
    if (rows_.empty()) reserve_rows(1);
    reserve_tokens(ids.size());
    const auto row = oldest_idle();
    if (row == rows_.size()) throw UserError("nothing can be scored while all rows answer");
    rows_[row].tokens.clear();  // what it held is overwritten

    std::vector<float> found;
    const auto prefix = prefix_length(ids);
    std::size_t start = 0;
    while (start + 1 < ids.size()) {
        // Logits behind a token are of the next one; the last token is not read.
        auto end = std::min(piece_end(start, ids.size() - 1, prefix), start + kPiece);
        if (end >= prompt.size()) end = std::min(end, std::max(start + 1, prompt.size() - 1) + kScoredAtOnce);
        if (std::cmp_less(start, prefix)) end = std::max(end, static_cast<std::size_t>(prefix));
        std::vector<std::size_t> wanted;
        for (auto at = std::max(start, prompt.size() - 1); at < end; ++at) wanted.push_back(at - start);
        const bool is_silent = wanted.empty();
        if (is_silent) wanted.push_back(end - start - 1);
        const auto logits = network_.read(row, {std::span(ids).subspan(start, end - start), start, prefix}, wanted);
        for (std::size_t i = 0; i < wanted.size() && !is_silent; ++i) {
            refuse_nan(logits[i]);
            found.push_back(log_probability(logits[i], static_cast<std::size_t>(ids[start + wanted[i] + 1])));
        }
        start = end;
    }
    return found;
}

}  // namespace lit_sft
