#pragma once

#include <httplib.h>

#include <atomic>
#include <string>

#include "api_request.h"
#include "service.h"

namespace lit_sft {

struct ServerOptions {
    std::string host = "127.0.0.1";
    int port = 8000;                ///< 0: any that is free
    std::string api_key;            ///< none is asked for if empty
    std::size_t max_rows = 16;      ///< answers that are written at once
    std::size_t max_waiting = 256;  ///< requests that may wait beside them; more are refused
    ApiLimits limits;
};

/// The API of OpenAI over a model: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics. Each request
/// has a connection and, while it is answered, a thread of its own.
class Server {
   public:
    /// The model must live as long.
    Server(Model& model, ServerOptions options);

    /// Takes the port, and returns its number.
    ///
    /// @throws UserError where it is taken.
    int bind();
    /// Serves until `stop`.
    void run() { http_.listen_after_bind(); }
    /// Takes no more requests; those there are go on.
    void refuse_more() { service_.refuse_more(); }
    /// Answers that clients wait for.
    [[nodiscard]] std::size_t num_open() const { return num_open_; }
    /// Ends at once, with what is being answered.
    void stop();

   private:
    using Handler = httplib::Server::Handler;

    void add_limits();
    void add_routes();
    [[nodiscard]] Handler guarded(Handler handler) const;
    void complete(const httplib::Request& asked, httplib::Response& response, bool is_chat);
    [[nodiscard]] bool has_key(const httplib::Request& asked) const;
    [[nodiscard]] std::string metrics();

    Model& model_;
    ServerOptions options_;
    std::atomic<std::size_t> num_open_{0};
    Service service_;
    httplib::Server http_;
    socket_t socket_ = INVALID_SOCKET;  // that listens
};

}  // namespace lit_sft
