#include "reply.h"

#include <utility>

namespace lit_sft {
namespace {

bool send(httplib::DataSink& sink, const std::string& text) { return sink.write(text.data(), text.size()); }

bool send_event(httplib::DataSink& sink, const nlohmann::json& content) {
    return send(sink, "data: " + written(content) + "\n\n");
}

bool done(httplib::DataSink& sink) {
    sink.done();
    return true;
}

}  // namespace

Reply::Reply(const ApiRequest& asked, std::shared_ptr<Ticket> ticket, const std::string& model,
             const Tokenizer& tokenizer, std::atomic<std::size_t>& num_open)
    : ticket_(std::move(ticket)),
      response_(model, asked.is_chat),
      text_(tokenizer, asked.stop_texts),
      num_prompt_(asked.num_prompt),
      is_streamed_(asked.is_streamed),
      wants_usage_(asked.wants_usage),
      num_open_(num_open) {
    ++num_open_;
}

Reply::~Reply() {
    ticket_->cancel();
    --num_open_;
}

bool Reply::write(httplib::DataSink& sink) {
    if (!sink.is_writable()) return false;
    const auto news = ticket_->wait();
    for (const auto token : news.ids) {
        if (!write_piece(sink, text_.push(token))) return false;
        if (text_.is_stopped()) return end(sink, "stop");
    }
    if (!news.answer) return true;
    switch (news.answer->reason) {
        case FinishReason::stop:
        case FinishReason::length: return write_piece(sink, text_.finish()) && end(sink, name(news.answer->reason));
        default: return fail(sink);
    }
}

bool Reply::write_piece(httplib::DataSink& sink, const std::string& text) {
    if (!is_streamed_ || text.empty()) return true;
    return send_event(sink, response_.piece(text, !std::exchange(has_begun_, true)));
}

bool Reply::end(httplib::DataSink& sink, const char* reason) {
    if (!is_streamed_) return send(sink, written(response_.whole(text_.text(), reason, usage()))) && done(sink);
    return (has_begun_ || send_event(sink, response_.piece("", true))) && send_event(sink, response_.end(reason)) &&
           (!wants_usage_ || send_event(sink, response_.usage(usage()))) && send(sink, "data: [DONE]\n\n") &&
           done(sink);
}

bool Reply::fail(httplib::DataSink& sink) {
    if (!is_streamed_) return false;  // its status is sent already
    return send_event(sink, api_error("the model failed to answer", "server_error")) && done(sink);
}

}  // namespace lit_sft
