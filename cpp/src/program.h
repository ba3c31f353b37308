#pragma once

#include <CLI/CLI.hpp>

namespace lit_sft {

/// The body of a program: adds its options and verbs to a command line and runs what is named there.
///
/// @param add gives `CLI::App` callbacks that own what they need; they may throw UserError.
/// @return the exit code: 2 for what the user can fix, which is said in one line on stderr; 1 for what nobody foresaw.
int run_program(int argc, char** argv, const char* description, void (*add)(CLI::App&)) noexcept;

}  // namespace lit_sft
