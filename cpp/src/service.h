#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "model.h"

namespace lit_sft {

/// An answer that another thread is writing.
class Ticket {
   public:
    /// What has happened since the last look.
    struct News {
        TokenIds ids;                  ///< without the one that ends an answer
        std::optional<Answer> answer;  ///< once it is complete
    };

    /// Waits a moment for news; there may be none.
    News wait();

    /// Nobody wants it any more: it ends before its next token.
    void cancel() { is_canceled_ = true; }

   private:
    friend class Service;

    void see(const ChosenTokens& answer);
    void finish(const Answer& answer);

    std::mutex mutex_;
    std::condition_variable changed_;
    News news_;
    std::size_t num_seen_ = 0;
    std::atomic<bool> is_canceled_{false};
};

/// What has been done since the start, and is being done.
struct ServiceCounts {
    std::size_t requests = 0;
    std::size_t refused = 0;   ///< because too many waited
    std::size_t canceled = 0;  ///< by whoever asked
    std::size_t failed = 0;
    std::size_t prompt_tokens = 0;
    std::size_t reused_tokens = 0;  ///< of prompts, which the cache still had
    std::size_t answer_tokens = 0;
    std::size_t running = 0;
    std::size_t waiting = 0;
};

/// A model in a thread of its own, asked by many others. No exception leaves that thread: tickets end with an error.
class Service {
   public:
    /// @param most answers that may be written or wait at once.
    Service(Model& model, std::size_t most) : model_(model), most_(most), thread_([this] { run(); }) {}
    Service(const Service&) = delete;
    Service& operator=(const Service&) = delete;
    ~Service();

    /// Nothing where too many wait, or none are taken any more. `done` and `goes_on` of the request are the ticket's.
    std::shared_ptr<Ticket> submit(Request request);

    /// Takes no more requests; those there are go on.
    void refuse_more();

    [[nodiscard]] ServiceCounts counts();
    /// False where it takes no more requests.
    [[nodiscard]] bool is_open();

   private:
    struct Incoming {
        Request request;
        std::shared_ptr<Ticket> ticket;
    };

    void run();
    [[nodiscard]] bool receive(bool is_idle);
    void begin(Incoming incoming);
    void finish(const std::shared_ptr<Ticket>& ticket, const Answer& answer, std::size_t num_prompt);
    void fail_all(const std::string& error);

    Model& model_;
    std::size_t most_;
    std::mutex mutex_;
    std::condition_variable arrived_;
    std::deque<Incoming> incoming_;
    std::deque<std::shared_ptr<Ticket>> open_;
    ServiceCounts counts_;
    bool is_open_ = true;
    bool is_stopping_ = false;
    std::thread thread_;  // the last: it uses all others
};

}  // namespace lit_sft
