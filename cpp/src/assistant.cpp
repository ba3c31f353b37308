#include "lit_sft/assistant.h"

#include "answering.h"
#include "model.h"
#include "stopped_text.h"

namespace lit_sft {

Assistant::Assistant(const std::filesystem::path& folder, const AssistantOptions& options)
    : model_(std::make_unique<Model>(folder,
                                     ModelOptions{.runtime = options.runtime, .num_threads = options.num_threads})) {}

Assistant::~Assistant() = default;

const Strategy& Assistant::strategy() const { return model_->generation().strategy; }

std::string Assistant::answer(const std::vector<Message>& messages, const Strategy& strategy, const OnText& on_text) {
    StoppedText text(model_->text().tokenizer(), {});
    Request request;
    request.prompt = model_->text().prompt(messages, "messages");
    request.strategy = strategy;
    request.stop = model_->generation().stop;
    request.goes_on = [&](const ChosenTokens& answer) {
        bool goes_on = true;
        for (const auto token : said(answer).subspan(std::min(text.num_tokens(), said(answer).size())))
            if (const auto added = text.push(token); on_text && !added.empty()) goes_on = on_text(added) && goes_on;
        return goes_on;
    };
    const auto answer = model_->engine().answer(std::move(request), "messages");
    if (answer.reason == FinishReason::prompt_too_long)
        throw UserError("messages: they fill the context of " + std::to_string(model_->generation().context_length));
    const auto rest = answer.reason == FinishReason::canceled ? "" : text.finish();
    if (on_text && !rest.empty()) on_text(rest);
    return text.text();
}

}  // namespace lit_sft
