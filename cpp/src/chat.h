#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "model.h"

namespace lit_sft {

/// A conversation at a terminal: lines are questions, those that begin with `/` are commands.
class Chat {
   public:
    Chat(Model& model, const Strategy& strategy, std::string system);

    /// Until /exit or the end of the input. Ctrl-C stops an answer, and leaves where none is being written.
    void run(std::istream& in, std::ostream& out);

   private:
    bool obey(const std::string& line);
    void answer(const std::string& question, std::ostream& out);

    Model& model_;
    Strategy strategy_;
    std::string system_;
    std::vector<Message> messages_;  // question and answer in turns
};

}  // namespace lit_sft
