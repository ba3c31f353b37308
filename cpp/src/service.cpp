#include "service.h"

#include <algorithm>
#include <chrono>

#include "answering.h"

namespace lit_sft {
namespace {

// A ticket is looked at so often, so that a client that has gone is noticed.
constexpr auto kLook = std::chrono::milliseconds(200);

Answer failed(const std::string& error) {
    Answer answer;
    answer.reason = FinishReason::failed;
    answer.error = error;
    return answer;
}

}  // namespace

Ticket::News Ticket::wait() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kLook, [this] { return !news_.ids.empty() || news_.answer; });
    return std::exchange(news_, {});
}

void Ticket::see(const ChosenTokens& answer) {
    const std::lock_guard lock(mutex_);
    const auto ids = said(answer);
    for (; num_seen_ < ids.size(); ++num_seen_) news_.ids.push_back(ids[num_seen_]);
    changed_.notify_all();
}

void Ticket::finish(const Answer& answer) {
    see(answer.tokens);
    const std::lock_guard lock(mutex_);
    news_.answer = answer;
    changed_.notify_all();
}

Service::~Service() {
    {
        const std::lock_guard lock(mutex_);
        is_stopping_ = true;
    }
    arrived_.notify_all();
    thread_.join();
}

std::shared_ptr<Ticket> Service::submit(Request request) {
    const std::lock_guard lock(mutex_);
    if (counts_.open >= most_ || is_stopping_) {
        ++counts_.refused;
        return nullptr;
    }
    auto ticket = std::make_shared<Ticket>();
    ++counts_.requests;
    ++counts_.open;
    open_.push_back(ticket);
    incoming_.push_back({std::move(request), ticket});
    arrived_.notify_all();
    return ticket;
}

ServiceCounts Service::counts() {
    const std::lock_guard lock(mutex_);
    return counts_;
}

void Service::run() {
    bool is_idle = true;
    while (receive(is_idle)) {
        try {
            is_idle = !model_.engine().step();
        } catch (const std::exception& error) {
            is_healthy_ = false;
            return fail_all(error.what());
        }
    }
    fail_all("the server stops");
}

/// Hands what has arrived to the engine, waiting for it where there is nothing else to do; false to stop.
bool Service::receive(bool is_idle) {
    std::deque<Incoming> arrived;
    {
        std::unique_lock lock(mutex_);
        if (is_idle) arrived_.wait(lock, [this] { return is_stopping_ || !incoming_.empty(); });
        if (is_stopping_) return false;
        arrived.swap(incoming_);
    }
    for (auto& each : arrived) begin(std::move(each));
    return true;
}

void Service::begin(Incoming incoming) {
    const auto ticket = incoming.ticket;
    const auto num_prompt = incoming.request.prompt.size();
    incoming.request.goes_on = [ticket, own = std::move(incoming.request.goes_on)](const ChosenTokens& answer) {
        ticket->see(answer);
        return !ticket->is_cancelled_ && (!own || own(answer));
    };
    incoming.request.done = [this, ticket, num_prompt](const Answer& answer) { finish(*ticket, answer, num_prompt); };
    try {
        model_.engine().submit(std::move(incoming.request), "prompt");
    } catch (const std::exception& error) {
        finish(*ticket, failed(error.what()), num_prompt);
    }
}

void Service::finish(Ticket& ticket, const Answer& answer, std::size_t num_prompt) {
    {
        const std::lock_guard lock(mutex_);
        --counts_.open;
        counts_.prompt_tokens += num_prompt;
        counts_.reused_tokens += answer.num_reused;
        counts_.answer_tokens += answer.tokens.ids.size();
        counts_.cancelled += ticket.is_cancelled_ ? 1 : 0;
        counts_.failed += answer.reason == FinishReason::failed ? 1 : 0;
        std::erase_if(open_, [&](const auto& each) { return each.get() == &ticket; });
    }
    ticket.finish(answer);
}

void Service::fail_all(const std::string& error) {
    std::deque<std::shared_ptr<Ticket>> left;
    {
        const std::lock_guard lock(mutex_);
        is_stopping_ = true;
        left.swap(open_);
        incoming_.clear();
        counts_.open = 0;
    }
    for (const auto& ticket : left) ticket->finish(failed(error));
}

}  // namespace lit_sft
