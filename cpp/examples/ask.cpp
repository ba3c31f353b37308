// One question to an exported model: lit-sft-ask FOLDER QUESTION

#include <lit_sft/assistant.h>

#include <iostream>

int main(int argc, char** argv) try {
    if (argc != 3) throw lit_sft::UserError("give the folder of a model and a question");
    lit_sft::Assistant assistant(argv[1]);
    auto strategy = assistant.strategy();
    strategy.max_new_tokens = 64;
    assistant.answer({{"user", argv[2]}}, strategy, [](std::string_view text) {
        std::cout << text << std::flush;
        return true;
    });
    std::cout << '\n';
} catch (const lit_sft::UserError& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
}
