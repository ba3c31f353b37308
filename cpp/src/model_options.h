#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "model.h"

namespace lit_sft {

/// Options that every verb with a network has.
class ModelArguments {
   public:
    explicit ModelArguments(std::size_t max_rows) { options_.max_rows = max_rows; }

    void add_to(CLI::App& app);

    /// The model, after telling on stderr what it takes.
    ///
    /// @throws UserError as `Model` does.
    [[nodiscard]] std::unique_ptr<Model> open() const;
    [[nodiscard]] const std::string& folder() const { return folder_; }
    [[nodiscard]] std::size_t max_rows() const { return options_.max_rows; }

   private:
    std::string folder_;
    ModelOptions options_;
    bool is_quiet_ = false;
};

}  // namespace lit_sft
