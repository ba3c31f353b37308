#include "service.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <iostream>
#include <utility>

#include "answering.h"
#include "lit_sft/error.h"

namespace lit_sft {
namespace {

// How long a look at a ticket lasts, so that a client that has gone is noticed.
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
        is_open_ = false;
        is_stopping_ = true;
    }
    arrived_.notify_all();
    thread_.join();
}

std::shared_ptr<Ticket> Service::submit(Request request) {
    const std::lock_guard lock(mutex_);
    if (!is_open_ || open_.size() >= most_) {
        ++counts_.refused;
        return nullptr;
    }
    ++counts_.requests;
    auto ticket = std::make_shared<Ticket>();
    open_.push_back(ticket);
    incoming_.push_back({std::move(request), ticket});
    arrived_.notify_all();
    return ticket;
}

void Service::refuse_more() {
    const std::lock_guard lock(mutex_);
    is_open_ = false;
}

ServiceCounts Service::counts() {
    const std::lock_guard lock(mutex_);
    auto found = counts_;
    found.running = std::min(found.running, open_.size());  // those that ended in this step may still be counted
    found.waiting = open_.size() - found.running;
    return found;
}

bool Service::is_open() {
    const std::lock_guard lock(mutex_);
    return is_open_;
}

void Service::run() {
    try {
        bool is_idle = true;
        while (receive(is_idle)) {
            is_idle = !model_.engine().step();
            const std::lock_guard lock(mutex_);
            counts_.running = model_.engine().num_running();
        }
        fail_all("the server stops");
    } catch (const std::exception& error) {
        std::cerr << "error: answers ended: " << error.what() << std::endl;
        fail_all(error.what());
    }
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
    incoming.request.goes_on = [ticket](const ChosenTokens& answer) {
        ticket->see(answer);
        return !ticket->is_canceled_;
    };
    incoming.request.done = [this, ticket, num_prompt](const Answer& answer) { finish(ticket, answer, num_prompt); };
    try {
        model_.engine().submit(std::move(incoming.request), "prompt");
    } catch (const UserError& error) {
        finish(ticket, failed(error.what()), num_prompt);
    }
}

void Service::finish(const std::shared_ptr<Ticket>& ticket, const Answer& answer, std::size_t num_prompt) {
    if (answer.reason == FinishReason::failed) std::cerr << "error: an answer failed: " << answer.error << std::endl;
    {
        const std::lock_guard lock(mutex_);
        counts_.prompt_tokens += num_prompt;
        counts_.reused_tokens += answer.num_reused;
        counts_.answer_tokens += answer.tokens.ids.size();
        counts_.canceled += answer.reason == FinishReason::canceled ? 1 : 0;
        counts_.failed += answer.reason == FinishReason::failed ? 1 : 0;
        std::erase(open_, ticket);
    }
    ticket->finish(answer);
}

void Service::fail_all(const std::string& error) {
    std::deque<std::shared_ptr<Ticket>> left;
    {
        const std::lock_guard lock(mutex_);
        is_open_ = false;
        counts_.failed += open_.size();
        counts_.running = 0;
        left.swap(open_);
        incoming_.clear();
    }
    for (const auto& ticket : left) ticket->finish(failed(error));
}

}  // namespace lit_sft
