// The command line: each verb with its options.

#include <CLI/CLI.hpp>
#include <iostream>

#include "lit_sft/error.h"
#include "model_verbs.h"
#include "text_verbs.h"

namespace {

constexpr int kMistake = 2;  // exit code of what the user can fix

using TextVerb = void (*)(const std::filesystem::path&, std::istream&, std::ostream&);

void add_text_verb(CLI::App& app, std::string& folder, const char* name, const char* help, TextVerb verb) {
    auto* command = app.add_subcommand(name, help);
    command->add_option("--model", folder, "Folder that `lit_sft export` wrote")->required();
    command->callback([&folder, verb] { verb(folder, std::cin, std::cout); });
}

int run(int argc, char** argv) {
    CLI::App app("Runs models that lit_sft exported.");
    app.require_subcommand(1);
    std::string folder;
    add_text_verb(app, folder, "tokenize", "JSON lines {\"text\"} to {\"ids\"}", lit_sft::tokenize);
    add_text_verb(app, folder, "prompt", "JSON lines {\"messages\"} to {\"ids\"}", lit_sft::write_prompts);
    add_text_verb(app, folder, "decode", "JSON lines {\"ids\"} to {\"text\"}", lit_sft::decode);
    lit_sft::add_model_verbs(app);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : kMistake;
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const lit_sft::UserError& error) {
        std::cerr << "error: " << error.what() << '\n';
        return kMistake;
    } catch (const std::bad_alloc&) {
        std::cerr << "error: there is not enough memory\n";
        return kMistake;
    }
}
