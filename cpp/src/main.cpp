#include <CLI/CLI.hpp>
#include <iostream>

#include "error.h"
#include "model_verbs.h"

int main(int argc, char** argv) {
    CLI::App app("Answers with models that lit_sft has exported");
    app.require_subcommand(1);
    try {
        lit_sft::add_model_verbs(app);
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : 2;
    } catch (const lit_sft::UserError& error) {
        std::cerr << error.what() << '\n';
        return 2;
    } catch (const std::bad_alloc&) {
        std::cerr << "there is not enough memory\n";
        return 2;
    }
    return 0;
}
