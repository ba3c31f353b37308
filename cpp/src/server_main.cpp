// A model behind the API of OpenAI.

#include <csignal>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <memory>
#include <thread>

#include "model_options.h"
#include "program.h"
#include "server.h"

namespace {

constexpr const char* kDescription =
    "Serves a model that lit_sft exported in the form of OpenAI's API. Requests must bring the key that the "
    "environment variable LIT_SFT_API_KEY holds, if it holds one.";

constexpr std::time_t kMostSeconds = 30;  // that answers under way may take when the server is ended

/// Those that end the server.
sigset_t ending_signals() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    return signals;
}

/// Waits for a signal, and then for the answers under way, or a second signal.
void end_on_signal(lit_sft::Server& server) {
    const auto signals = ending_signals();
    int caught = 0;
    sigwait(&signals, &caught);
    server.refuse_more();
    const auto end = std::time(nullptr) + kMostSeconds;
    const timespec moment{.tv_sec = 0, .tv_nsec = 20'000'000};
    while (server.num_open() > 0 && std::time(nullptr) < end)
        if (sigtimedwait(&signals, nullptr, &moment) > 0) break;
    server.stop();
}

/// What the command line says, and the server of it.
struct Program {
    lit_sft::ServerOptions options;
    lit_sft::ModelArguments model{options.max_rows};

    void run() {
        if (const char* key = std::getenv("LIT_SFT_API_KEY")) options.api_key = key;
        options.max_rows = model.max_rows();
        options.limits.model = std::filesystem::weakly_canonical(model.folder()).filename();
        const auto opened = model.open();
        lit_sft::Server server(*opened, options);
        const auto port = server.bind();
        std::cerr << "models " << options.limits.model << " at http://" << options.host << ':' << port
                  << "/v1; Ctrl-C to stop" << std::endl;
        std::thread waiting([&] { end_on_signal(server); });
        server.run();
        waiting.join();
    }
};

void add_options(CLI::App& app) {
    const auto program = std::make_shared<Program>();
    auto& options = program->options;
    options.limits.max_tokens = 2048;
    program->model.add_to(app);
    app.add_option("--host", options.host, "address to listen on; only this machine reaches the default");
    app.add_option("--port", options.port, "to listen on; 0 for any that is free")->check(CLI::Range(0, 65535));
    app.add_option("--max_waiting", options.max_waiting, "requests that may wait beside those that are answered")
        ->check(CLI::Range(1, 4096));
    app.add_option("--max_tokens", options.limits.max_tokens, "of an answer at most")->check(CLI::Range(1, 1 << 20));
    app.callback([program] { program->run(); });
}

}  // namespace

int main(int argc, char** argv) {
    // Before any thread begins: all inherit it, so that only the one that waits sees them.
    const auto signals = ending_signals();
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    return lit_sft::run_program(argc, argv, kDescription, add_options);
}
