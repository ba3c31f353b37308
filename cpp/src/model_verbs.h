#pragma once

#include <CLI/CLI.hpp>

namespace lit_sft {

/// Adds the verbs that run a network: chat, generate, score, bench.
void add_model_verbs(CLI::App& app);

}  // namespace lit_sft
