// A model behind the API of OpenAI.

#include <pthread.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <fstream>
#include <iostream>
#include <thread>

#include "error.h"
#include "model_options.h"
#include "server.h"

namespace {

constexpr int kMistake = 2;  // exit code of what the user can fix

bool is_loopback(const std::string& host) { return host == "127.0.0.1" || host == "::1" || host == "localhost"; }

std::string read_key(const std::string& file) {
    std::ifstream stream(file);
    std::string key;
    if (!(stream >> key)) throw lit_sft::UserError("--api_key_file " + file + " holds no key");
    return key;
}

/// Serves until SIGTERM or SIGINT, which a thread of its own waits for.
void serve(lit_sft::Server& server, const lit_sft::ServerOptions& options) {
    const auto port = server.bind();
    std::cerr << "listening at http://" << options.host << ':' << port << "/v1\n" << std::flush;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    std::thread waiting([&] {
        int caught = 0;
        sigwait(&signals, &caught);
        server.stop();
    });
    server.run();
    // Where it ended by itself the thread still waits.
    pthread_kill(waiting.native_handle(), SIGTERM);
    waiting.join();
}

int run(int argc, char** argv) {
    CLI::App app("Serves a model that lit_sft exported, as the API of OpenAI does.");
    lit_sft::ModelArguments model(8);
    lit_sft::ServerOptions options;
    std::string key_file;
    model.add_to(app);
    app.add_option("--host", options.host, "address to listen at; another than this machine's own needs a key");
    app.add_option("--port", options.port, "0 for any that is free")->check(CLI::Range(0, 65535));
    app.add_option("--name", options.name, "of the model, for clients");
    app.add_option("--api_key_file", key_file, "file with the key that clients must send; else $LIT_SFT_API_KEY");
    app.add_option("--queue", options.most_open, "answers that are written or wait at once")
        ->check(CLI::Range(1, 4096));
    app.add_option("--max_bytes", options.most_bytes, "of a request");
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : kMistake;
    }
    if (!key_file.empty()) {
        options.api_key = read_key(key_file);
    } else if (const char* key = std::getenv("LIT_SFT_API_KEY")) {
        options.api_key = key;
    }
    if (!is_loopback(options.host) && options.api_key.empty())
        throw lit_sft::UserError("--host " + options.host +
                                 " can be reached by others: give --api_key_file, or listen at 127.0.0.1");
    const auto opened = model.open();
    lit_sft::Server server(*opened, options);
    serve(server, options);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    // Before any thread begins: all inherit it, so that only the one that waits sees them.
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    try {
        return run(argc, argv);
    } catch (const lit_sft::UserError& error) {
        std::cerr << "error: " << error.what() << '\n';
    } catch (const std::bad_alloc&) {
        std::cerr << "error: there is not enough memory\n";
    }
    return kMistake;
}
