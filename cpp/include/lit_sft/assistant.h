#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lit_sft/error.h"
#include "lit_sft/message.h"
#include "lit_sft/strategy.h"

namespace lit_sft {

class Model;

struct AssistantOptions {
    std::filesystem::path runtime;  ///< ONNX Runtime's library or its folder; $LIT_SFT_ORT, or beside the program
    int num_threads = 0;            ///< as many as there are physical cores if 0
};

/// A model that `lit_sft export` has written, for programs of others. For one thread.
class Assistant {
   public:
    /// Sees what an answer grows by, whole characters; false ends the answer.
    using OnText = std::function<bool(std::string_view)>;

    /// @throws UserError where a file or the runtime is missing or damaged.
    explicit Assistant(const std::filesystem::path& folder, const AssistantOptions& options = {});
    Assistant(const Assistant&) = delete;
    Assistant& operator=(const Assistant&) = delete;
    ~Assistant();

    /// How the model was made to be asked.
    [[nodiscard]] const Strategy& strategy() const;

    /// The answer to a conversation, as `predict` of Python gives it. What an earlier one began alike is not read
    /// again.
    ///
    /// @throws UserError where the model's prompt format cannot write the conversation, or it fills the context.
    std::string answer(const std::vector<Message>& messages, const Strategy& strategy, const OnText& on_text = {});

   private:
    std::unique_ptr<Model> model_;
};

}  // namespace lit_sft
