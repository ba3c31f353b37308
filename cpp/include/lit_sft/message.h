#pragma once

#include <string>

namespace lit_sft {

/// A message of a conversation.
struct Message {
    std::string role;  ///< system, user, assistant or tool
    std::string content;
    std::string thoughts = {};  ///< what an assistant with tools writes beside its answer (MOSS)
    std::string commands = {};
    std::string name = {};  ///< of the tool that is meant (ChatGLM3)
};

}  // namespace lit_sft
