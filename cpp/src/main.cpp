// The command line: each verb with its options.

#include <iostream>
#include <memory>

#include "model_verbs.h"
#include "program.h"
#include "text_verbs.h"

namespace {

using TextVerb = void (*)(const std::filesystem::path&, std::istream&, std::ostream&);

void add_text_verb(CLI::App& app, const char* name, const char* help, TextVerb verb) {
    auto* command = app.add_subcommand(name, help);
    const auto folder = std::make_shared<std::string>();
    command->add_option("--model", *folder, "Folder that `lit_sft export` wrote")->required();
    command->callback([folder, verb] { verb(*folder, std::cin, std::cout); });
}

void add_verbs(CLI::App& app) {
    app.require_subcommand(1);
    add_text_verb(app, "tokenize", "JSON lines {\"text\"} to {\"ids\"}", lit_sft::tokenize);
    add_text_verb(app, "prompt", "JSON lines {\"messages\"} to {\"ids\"}", lit_sft::write_prompts);
    add_text_verb(app, "decode", "JSON lines {\"ids\"} to {\"text\"}", lit_sft::decode);
    lit_sft::add_model_verbs(app);
}

}  // namespace

int main(int argc, char** argv) {
    return lit_sft::run_program(argc, argv, "Runs models that lit_sft exported.", add_verbs);
}
