#include "program.h"

#include <exception>
#include <iostream>
#include <new>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

constexpr int kFault = 1;
constexpr int kMistake = 2;  // of the user

int refused(const char* reason, int code) {
    std::cerr << "error: " << reason << '\n';
    return code;
}

int parsed(CLI::App& app, int argc, char** argv) {
    try {
        app.parse(argc, argv);
        return 0;
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : kMistake;  // 0: --help
    }
}

}  // namespace

int run_program(int argc, char** argv, const char* description, void (*add)(CLI::App&)) noexcept {
    try {
        CLI::App app(description);
        add(app);
        return parsed(app, argc, argv);
    } catch (const UserError& error) {
        return refused(error.what(), kMistake);
    } catch (const std::bad_alloc&) {
        return refused("there is not enough memory", kMistake);
    } catch (const std::exception& error) {
        return refused(error.what(), kFault);
    }
}

}  // namespace lit_sft
