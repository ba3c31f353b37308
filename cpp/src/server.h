#pragma once

#include <httplib.h>

#include <atomic>
#include <string>

#include "openai.h"
#include "service.h"

namespace lit_sft {

struct ServerOptions {
    std::string host = "127.0.0.1";
    int port = 8000;               ///< 0: any that is free
    std::string name = "lit_sft";  ///< of the model, for clients
    std::string api_key;           ///< none is asked for if empty
    std::size_t most_open = 64;    ///< answers that are written or wait at once; others are told to come again
    std::size_t most_bytes = std::size_t{4} << 20;  ///< of a request
};

/// The API of OpenAI over a model: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics.
class Server {
   public:
    Server(Model& model, const ServerOptions& options);

    /// Takes the port, and returns its number.
    ///
    /// @throws UserError where it is taken.
    int bind();
    /// Serves until `stop`.
    void run();
    void stop();

   private:
    void add_routes();
    void complete(const httplib::Request& asked, httplib::Response& response, bool is_chat);
    void refuse(httplib::Response& response, int status, const nlohmann::json& error) const;
    [[nodiscard]] bool has_key(const httplib::Request& asked) const;
    [[nodiscard]] std::string metrics();

    Model& model_;
    ServerOptions options_;
    Service service_;
    httplib::Server http_;
    std::atomic<std::size_t> num_requests_{0};
};

}  // namespace lit_sft
