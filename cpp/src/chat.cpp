#include "chat.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <iostream>

#include "answering.h"
#include "lit_sft/error.h"
#include "stream.h"
#include "unicode.h"

namespace lit_sft {
namespace {

constexpr const char* kHelp =
    "/system [TEXT]   set the system message (none without TEXT) and begin anew\n"
    "/reset           forget the conversation\n"
    "/help, /exit     this text; leave (or Ctrl-D). Ctrl-C stops an answer";

std::atomic<bool> is_interrupted{false};

/// While an answer is written Ctrl-C ends it, and not the program.
class Interruptible {
   public:
    Interruptible() {
        is_interrupted = false;
        struct sigaction action {};
        action.sa_handler = [](int) { is_interrupted = true; };
        sigaction(SIGINT, &action, &before_);
    }
    Interruptible(const Interruptible&) = delete;
    Interruptible& operator=(const Interruptible&) = delete;
    ~Interruptible() { sigaction(SIGINT, &before_, nullptr); }

   private:
    struct sigaction before_ {};
};

void notice(const std::string& text) { std::cerr << text << '\n'; }

}  // namespace

Chat::Chat(Model& model, const Strategy& strategy, std::string system)
    : model_(model), strategy_(strategy), system_(std::move(system)) {
    static_cast<void>(model_.text().format());  // refuses a model that takes ids only
}

void Chat::run(std::istream& in, std::ostream& out) {
    const bool is_terminal = isatty(STDIN_FILENO) == 1;
    std::string line;
    while (true) {
        if (is_terminal) out << "> " << std::flush;
        if (!std::getline(in, line)) return;
        const auto said = std::string(stripped(well_formed(line, Replaced::longest_beginnings)));
        if (said.empty()) continue;
        try {
            if (said.front() != '/')
                answer(said, out);
            else if (!obey(said))
                return;
        } catch (const UserError& error) {  // of this question, not of the model
            notice(error.what());
        }
    }
}

bool Chat::obey(const std::string& line) {
    const auto name = line.substr(0, line.find(' '));
    const auto rest = line.size() > name.size() ? std::string(stripped(line.substr(name.size()))) : std::string();
    if (name == "/exit") return false;
    if (name == "/help") {
        notice(kHelp);
    } else if (name == "/reset" || name == "/system") {
        if (name == "/system") system_ = rest;
        messages_.clear();
        notice("a new conversation");
    } else {
        throw UserError("unknown command " + harmless(name) + "; /help names all");
    }
    return true;
}

void Chat::answer(const std::string& question, std::ostream& out) {
    auto asked = messages_;
    asked.push_back({"user", question, {}, {}, {}});
    auto whole = asked;
    if (!system_.empty()) whole.insert(whole.begin(), {"system", system_, {}, {}, {}});
    AnswerStream stream(model_.text().tokenizer(), /*for_terminal=*/true);
    std::size_t num_shown = 0;
    Request request;
    request.prompt = model_.text().prompt(whole, "chat");
    request.strategy = strategy_;
    request.stop = model_.generation().stop;
    const auto show = [&](const ChosenTokens& answer) {
        const auto ids = said(answer);
        if (ids.size() > num_shown) out << stream.push(ids.subspan(num_shown)) << std::flush;
        num_shown = ids.size();
    };
    request.goes_on = [&](const ChosenTokens& answer) {
        show(answer);
        return !is_interrupted;
    };
    Answer answer;
    {
        const Interruptible interruptible;
        answer = model_.engine().answer(std::move(request), "chat");
    }
    show(answer.tokens);  // of beam search the whole
    out << stream.finish() << '\n' << std::flush;
    if (answer.reason == FinishReason::prompt_too_long)
        throw UserError("the question fills the context of " + std::to_string(model_.generation().context_length) +
                        " tokens");
    if (answer.reason == FinishReason::length)
        notice("cut after " + std::to_string(answer.tokens.ids.size()) + " tokens");
    if (answer.reason == FinishReason::canceled) notice("stopped");
    const auto kept = std::string(stripped(stream.text()));
    if (kept.empty()) return;
    asked.push_back({"assistant", kept, {}, {}, {}});
    messages_ = std::move(asked);
}

}  // namespace lit_sft
