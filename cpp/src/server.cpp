#include "server.h"

#include <sys/socket.h>

#include <chrono>
#include <thread>
#include <utility>

#include "lit_sft/error.h"
#include "reply.h"

namespace lit_sft {
namespace {

using nlohmann::json;

constexpr const char* kJson = "application/json";
constexpr std::size_t kMostBytes = std::size_t{1} << 20;  // of a request
constexpr std::size_t kSpareThreads = 8;                  // beside those that hold an answer: health, refusals

void say(httplib::Response& response, int status, const json& content) {
    response.status = status;
    response.set_content(written(content), kJson);
}

/// What the library says by a number alone.
const char* name_of_status(int status) {
    switch (status) {
        case 404: return "there is nothing at this path";
        case 413: return "the request has more than 1,048,576 bytes";
        default: return "the request cannot be read";
    }
}

}  // namespace

Server::Server(Model& model, ServerOptions options)
    : model_(model), options_(std::move(options)), service_(model, options_.max_rows + options_.max_waiting) {
    static_cast<void>(model.text().format());  // refuses a model that takes ids only
    add_limits();
    add_routes();
}

int Server::bind() {
    const auto port = options_.port ? (http_.bind_to_port(options_.host, options_.port) ? options_.port : -1)
                                    : http_.bind_to_any_port(options_.host);
    if (port < 0)
        throw UserError("--host " + options_.host + " --port " + std::to_string(options_.port) +
                        " cannot be listened at; take another port, or end the program that is there");
    // The library lets five connections wait to be taken, and the system resets others.
    listen(socket_, SOMAXCONN);
    return port;
}

void Server::stop() {
    // Until it listens it cannot be stopped.
    while (!http_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    http_.stop();
}

void Server::add_limits() {
    http_.new_task_queue = [most = options_.max_rows + options_.max_waiting + kSpareThreads] {
        return new httplib::ThreadPool(most);
    };
    // The library would let a second server listen at the same port.
    http_.set_socket_options([this](socket_t socket) {
        socket_ = socket;
        const int yes = 1;
        setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    http_.set_tcp_nodelay(true);
    http_.set_payload_max_length(kMostBytes);
    // A connection for each request: none holds a thread while it is idle, and what is left of a body that was refused
    // is not taken for the next request.
    http_.set_keep_alive_max_count(1);
    // The library bounds the length that a request says, and nothing else.
    http_.set_pre_routing_handler([](const httplib::Request& asked, httplib::Response& response) {
        const bool has_length = asked.has_header("Content-Length") && !asked.has_header("Transfer-Encoding");
        if (asked.method != "GET" && asked.method != "HEAD" && !has_length) {
            say(response, 411, api_error("the request does not say how long it is"));
            return httplib::Server::HandlerResponse::Handled;
        }
        if (asked.has_header("Content-Encoding")) {
            say(response, 415, api_error("the request is compressed"));
            return httplib::Server::HandlerResponse::Handled;
        }
        return httplib::Server::HandlerResponse::Unhandled;
    });
    http_.set_exception_handler([](const auto&, httplib::Response& response, const std::exception_ptr&) {
        say(response, 500, api_error("the server failed", "server_error"));
    });
    http_.set_error_handler([](const httplib::Request&, httplib::Response& response) {
        if (response.body.empty()) say(response, response.status, api_error(name_of_status(response.status)));
    });
}

void Server::add_routes() {
    const auto completed = [this](bool is_chat) {
        return guarded([this, is_chat](const auto& asked, auto& response) { complete(asked, response, is_chat); });
    };
    http_.Post("/v1/chat/completions", completed(true));
    http_.Post("/v1/completions", completed(false));
    http_.Get("/v1/models", guarded([this](const auto&, auto& response) {
                  const json one = {
                      {"id", options_.limits.model}, {"object", "model"}, {"created", 0}, {"owned_by", "lit_sft"}};
                  say(response, 200, {{"object", "list"}, {"data", json::array({one})}});
              }));
    http_.Get("/metrics", guarded([this](const auto&, auto& response) {
                  response.set_content(metrics(), "text/plain; version=0.0.4");
              }));
    http_.Get("/health", [this](const auto&, auto& response) {
        const auto counts = service_.counts();
        const bool is_open = service_.is_open();
        say(response, is_open ? 200 : 503,
            {{"status", is_open ? "ok" : "ended"}, {"running", counts.running}, {"waiting", counts.waiting}});
    });
}

Server::Handler Server::guarded(Handler handler) const {
    return [this, handler = std::move(handler)](const httplib::Request& asked, httplib::Response& response) {
        if (has_key(asked)) return handler(asked, response);
        say(response, 401, api_error("the API key is missing or wrong", "authentication_error"));
    };
}

void Server::complete(const httplib::Request& asked, httplib::Response& response, bool is_chat) {
    ApiRequest request;
    try {
        request = read_api_request(asked.body, is_chat, model_, options_.limits);
    } catch (const UserError& error) {
        return say(response, 400, api_error(error.what()));
    }
    auto ticket = service_.submit(std::move(request.request));
    if (!ticket) {
        response.set_header("Retry-After", "1");
        return say(response, 429, api_error("too many requests wait; try again", "rate_limit_error"));
    }
    const auto reply = std::make_shared<Reply>(request, std::move(ticket), options_.limits.model,
                                               model_.text().tokenizer(), num_open_);
    response.set_chunked_content_provider(request.is_streamed ? "text/event-stream" : kJson,
                                          [reply](std::size_t, httplib::DataSink& sink) { return reply->write(sink); });
}

/// Compares all characters, however early the first that differs.
bool Server::has_key(const httplib::Request& asked) const {
    if (options_.api_key.empty()) return true;
    const auto given = asked.get_header_value("Authorization");
    const auto wanted = "Bearer " + options_.api_key;
    unsigned differs = given.size() == wanted.size() ? 0 : 1;
    for (std::size_t i = 0; i < wanted.size(); ++i)
        differs |= static_cast<unsigned char>(wanted[i]) ^ static_cast<unsigned char>(i < given.size() ? given[i] : 0);
    return differs == 0;
}

std::string Server::metrics() {
    const auto counts = service_.counts();
    const std::pair<std::string, std::size_t> named[] = {{"requests_total", counts.requests},
                                                         {"refused_total", counts.refused},
                                                         {"canceled_total", counts.canceled},
                                                         {"failed_total", counts.failed},
                                                         {"prompt_tokens_total", counts.prompt_tokens},
                                                         {"reused_tokens_total", counts.reused_tokens},
                                                         {"answer_tokens_total", counts.answer_tokens},
                                                         {"running", counts.running},
                                                         {"waiting", counts.waiting}};
    std::string text;
    for (const auto& [name, number] : named) {
        const auto full = "lit_sft_" + name;
        text += "# TYPE " + full + (name.ends_with("_total") ? " counter\n" : " gauge\n");
        text += full + " " + std::to_string(number) + "\n";
    }
    return text;
}

}  // namespace lit_sft
