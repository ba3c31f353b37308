#include "server.h"

#include "error.h"
#include "stream.h"

namespace lit_sft {
namespace {

using nlohmann::json;

constexpr const char* kJson = "application/json";
constexpr std::size_t kSpareThreads = 8;  // beside those that hold an answer: health, metrics, refusals

/// Writes an answer while another thread makes it; one for each request.
class Writer {
   public:
    Writer(ApiRequest request, ApiResponse response, std::shared_ptr<Ticket> ticket, const Tokenizer& tokenizer,
           std::size_t num_prompt)
        : request_(std::move(request)),
          response_(std::move(response)),
          ticket_(std::move(ticket)),
          tokenizer_(tokenizer),
          stream_(tokenizer),
          num_prompt_(num_prompt) {}
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;
    ~Writer() { ticket_->cancel(); }  // whoever wanted it has gone, or has it

    /// A part; false where the client has gone, which ends the answer.
    bool write(httplib::DataSink& sink) {
        if (!sink.is_writable()) return false;
        const auto news = ticket_->wait();
        if (!request_.is_streamed) return !news.answer || (write_whole(sink, *news.answer) && done(sink));
        if (request_.is_chat && !std::exchange(has_begun_, true) && !event(sink, response_.first())) return false;
        const auto text = stream_.push(news.ids);
        if (!news.answer) return show(sink, text, false);
        return write_end(sink, text, *news.answer) && done(sink);
    }

   private:
    static bool send(httplib::DataSink& sink, const std::string& text) { return sink.write(text.data(), text.size()); }
    static bool event(httplib::DataSink& sink, const json& content) {
        return send(sink, "data: " + written(content) + "\n\n");
    }
    static bool done(httplib::DataSink& sink) {
        sink.done();
        return true;
    }

    bool write_whole(httplib::DataSink& sink, const Answer& answer) {
        if (answer.reason == FinishReason::failed) return send(sink, written(api_error(answer.error, "server_error")));
        const auto [text, reason] = text_of(answer, tokenizer_, request_.stop_texts);
        return send(sink, written(response_.whole(tokenizer_.polished(text), answer, reason, num_prompt_, tokenizer_)));
    }

    /// The rest, why it ended, and what the protocol wants at the end.
    bool write_end(httplib::DataSink& sink, const std::string& text, const Answer& answer) {
        if (answer.reason == FinishReason::failed) return event(sink, api_error(answer.error, "server_error"));
        const auto stopped = text_of(answer, tokenizer_, request_.stop_texts);
        const auto last = text + stream_.finish();
        return show(sink, last, true) && event(sink, response_.last(stopped.reason)) &&
               (!request_.wants_usage || event(sink, response_.usage(answer, num_prompt_))) &&
               send(sink, "data: [DONE]\n\n");
    }

    /// Text, but for what may turn out to begin a stop text.
    bool show(httplib::DataSink& sink, const std::string& text, bool is_last) {
        if (has_stopped_) return true;
        pending_ += text;
        std::size_t held = 0;
        for (const auto& stop : request_.stop_texts) held = std::max(held, stop.size());
        if (const auto end = find_stop(pending_, request_.stop_texts)) {
            pending_.resize(*end);
            is_last = has_stopped_ = true;
        }
        auto num_shown = is_last ? pending_.size() : pending_.size() - std::min(pending_.size(), held);
        while (num_shown > 0 && num_shown < pending_.size() && (pending_[num_shown] & 0xc0) == 0x80) --num_shown;
        if (num_shown == 0) return true;
        const auto shown = pending_.substr(0, num_shown);
        pending_.erase(0, num_shown);
        return event(sink, response_.piece(shown));
    }

    ApiRequest request_;
    ApiResponse response_;
    std::shared_ptr<Ticket> ticket_;
    const Tokenizer& tokenizer_;
    AnswerStream stream_;
    std::size_t num_prompt_;
    std::string pending_;
    bool has_begun_ = false;
    bool has_stopped_ = false;  // at a text
};

}  // namespace

Server::Server(Model& model, const ServerOptions& options)
    : model_(model), options_(options), service_(model, options.most_open) {
    static_cast<void>(model.text().tokenizer());  // refuses a model that takes ids only
    http_.new_task_queue = [most = options.most_open] { return new httplib::ThreadPool(most + kSpareThreads); };
    http_.set_payload_max_length(options.most_bytes);
    http_.set_keep_alive_timeout(5);
    add_routes();
}

int Server::bind() {
    const auto port = options_.port ? (http_.bind_to_port(options_.host, options_.port) ? options_.port : -1)
                                    : http_.bind_to_any_port(options_.host);
    if (port < 0)
        throw UserError("--host " + options_.host + " --port " + std::to_string(options_.port) +
                        " cannot be listened at; is another program there?");
    return port;
}

void Server::run() { http_.listen_after_bind(); }

void Server::stop() { http_.stop(); }

void Server::add_routes() {
    http_.set_pre_routing_handler([this](const httplib::Request& asked, httplib::Response& response) {
        if (asked.path == "/health" || has_key(asked)) return httplib::Server::HandlerResponse::Unhandled;
        refuse(response, 401, api_error("the API key is missing or wrong", "authentication_error"));
        return httplib::Server::HandlerResponse::Handled;
    });
    http_.set_exception_handler([this](const auto&, httplib::Response& response, std::exception_ptr) {
        refuse(response, 500, api_error("the server failed", "server_error"));
    });
    http_.set_error_handler([this](const httplib::Request&, httplib::Response& response) {
        if (response.body.empty())
            refuse(response, response.status, api_error("there is nothing here, or it is too large"));
    });
    http_.Post("/v1/chat/completions", [this](const auto& asked, auto& response) { complete(asked, response, true); });
    http_.Post("/v1/completions", [this](const auto& asked, auto& response) { complete(asked, response, false); });
    http_.Get("/v1/models", [this](const auto&, auto& response) {
        const json one = {{"id", options_.name}, {"object", "model"}, {"created", 0}, {"owned_by", "lit_sft"}};
        response.set_content(written({{"object", "list"}, {"data", {one}}}), kJson);
    });
    http_.Get("/health", [this](const auto&, auto& response) {
        response.status = service_.is_healthy() ? 200 : 503;
        response.set_content(service_.is_healthy() ? R"({"status":"ok"})" : R"({"status":"failed"})", kJson);
    });
    http_.Get("/metrics",
              [this](const auto&, auto& response) { response.set_content(metrics(), "text/plain; version=0.0.4"); });
}

void Server::complete(const httplib::Request& asked, httplib::Response& response, bool is_chat) {
    ApiRequest request;
    try {
        request = read_api_request(asked.body, is_chat, model_);
    } catch (const UserError& error) {
        return refuse(response, 400, api_error(error.what()));
    }
    const auto num_prompt = request.request.prompt.size();
    auto ticket = service_.submit(std::move(request.request));
    if (!ticket) {
        response.set_header("Retry-After", "1");
        return refuse(response, 429, api_error("too many requests at once; try again", "rate_limit_error"));
    }
    const auto id = (is_chat ? "chatcmpl-" : "cmpl-") + std::to_string(++num_requests_);
    const auto type = request.is_streamed ? "text/event-stream" : kJson;
    const auto writer = std::make_shared<Writer>(std::move(request), ApiResponse(id, options_.name, is_chat),
                                                 std::move(ticket), model_.text().tokenizer(), num_prompt);
    response.set_chunked_content_provider(
        type, [writer](std::size_t, httplib::DataSink& sink) { return writer->write(sink); });
}

void Server::refuse(httplib::Response& response, int status, const json& error) const {
    response.status = status;
    response.set_content(written(error), kJson);
}

/// Compares all characters, however early the first that differs.
bool Server::has_key(const httplib::Request& asked) const {
    if (options_.api_key.empty()) return true;
    const auto given = asked.get_header_value("Authorization");
    const auto wanted = "Bearer " + options_.api_key;
    unsigned differs = given.size() == wanted.size() ? 0 : 1;
    for (std::size_t i = 0; i < wanted.size() && i < given.size(); ++i)
        differs |= static_cast<unsigned>(static_cast<unsigned char>(given[i] ^ wanted[i]));
    return differs == 0;
}

std::string Server::metrics() {
    const auto counts = service_.counts();
    const std::pair<const char*, std::size_t> named[] = {{"lit_sft_requests_total", counts.requests},
                                                         {"lit_sft_requests_refused_total", counts.refused},
                                                         {"lit_sft_requests_cancelled_total", counts.cancelled},
                                                         {"lit_sft_requests_failed_total", counts.failed},
                                                         {"lit_sft_prompt_tokens_total", counts.prompt_tokens},
                                                         {"lit_sft_reused_tokens_total", counts.reused_tokens},
                                                         {"lit_sft_answer_tokens_total", counts.answer_tokens},
                                                         {"lit_sft_requests_open", counts.open}};
    std::string text;
    for (const auto& [name, number] : named) {
        const std::string_view view = name;
        text += "# TYPE " + std::string(view) + (view.ends_with("_total") ? " counter\n" : " gauge\n");
        text += std::string(view) + " " + std::to_string(number) + "\n";
    }
    return text;
}

}  // namespace lit_sft
