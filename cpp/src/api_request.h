#pragma once

#include <string>
#include <vector>

#include "model.h"

namespace lit_sft {

/// A request as the API of OpenAI has it, checked.
struct ApiRequest {
    Request request;
    std::vector<std::string> stop_texts;
    std::size_t num_prompt = 0;  ///< tokens
    bool is_chat = true;
    bool is_streamed = false;
    bool wants_usage = false;  ///< of a streamed answer, behind its end
};

/// What requests may ask for.
struct ApiLimits {
    std::string model;           ///< the name that they give
    std::size_t max_tokens = 0;  ///< of an answer at most
};

/// A body of /v1/chat/completions or /v1/completions, read as `lit_sft/serve/protocol.py` does: what is not offered is
/// refused, not ignored.
///
/// @throws UserError naming the key that is wrong, or asks for what there is not.
ApiRequest read_api_request(const std::string& body, bool is_chat, const Model& model, const ApiLimits& limits);

}  // namespace lit_sft
