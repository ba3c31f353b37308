#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "strategy.h"

namespace lit_sft {

/// Options of a command line that say how tokens are chosen, by the names that a configuration has.
class StrategyOptions {
   public:
    void add_to(CLI::App& app);

    /// What was given, else what the model was made to be asked with.
    ///
    /// @throws UserError for an option that the strategy does not have, or a value out of range.
    [[nodiscard]] Strategy over(const Strategy& of_model) const;

   private:
    std::string name_;
    std::map<std::string, std::string> given_;
};

}  // namespace lit_sft
