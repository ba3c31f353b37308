#pragma once

#include <httplib.h>

#include <atomic>
#include <memory>

#include "api_request.h"
#include "api_response.h"
#include "service.h"
#include "stopped_text.h"

namespace lit_sft {

/// Writes one answer while another thread makes it. With it ends the answer: whoever wanted it has it, or has gone.
class Reply {
   public:
    /// @param num_open counts replies while they are; must live as long.
    Reply(const ApiRequest& asked, std::shared_ptr<Ticket> ticket, const std::string& model, const Tokenizer& tokenizer,
          std::atomic<std::size_t>& num_open);
    Reply(const Reply&) = delete;
    Reply& operator=(const Reply&) = delete;
    ~Reply();

    /// Writes what there is; false ends the connection: the client has gone, or an answer that cannot be told from a
    /// whole one failed.
    bool write(httplib::DataSink& sink);

   private:
    bool end(httplib::DataSink& sink, const char* reason);
    bool fail(httplib::DataSink& sink);
    bool write_piece(httplib::DataSink& sink, const std::string& text);
    [[nodiscard]] Usage usage() const { return {num_prompt_, text_.num_tokens()}; }

    std::shared_ptr<Ticket> ticket_;
    ApiResponse response_;
    StoppedText text_;
    std::size_t num_prompt_;
    bool is_streamed_;
    bool wants_usage_;
    bool has_begun_ = false;
    std::atomic<std::size_t>& num_open_;
};

}  // namespace lit_sft
