#pragma once

#include <filesystem>

#include "engine.h"
#include "generation.h"
#include "text_side.h"

namespace lit_sft {

struct ModelOptions {
    std::filesystem::path runtime;  ///< ONNX Runtime's library or its folder; `find_runtime` if empty
    int num_threads = 0;            ///< as many as there are physical cores if 0
    std::size_t max_rows = 1;       ///< answers that are written at once
};

/// A folder that `lit_sft export` has written, ready to answer.
class Model {
   public:
    /// @throws UserError where a file is missing or damaged.
    Model(const std::filesystem::path& folder, const ModelOptions& options);

    [[nodiscard]] const Generation& generation() const { return generation_; }
    [[nodiscard]] int num_threads() const { return num_threads_; }
    [[nodiscard]] const std::string& runtime_version() const { return runtime_.version(); }
    [[nodiscard]] const TextSide& text() const { return text_; }
    Engine& engine() { return engine_; }

   private:
    int num_threads_;
    Generation generation_;
    TextSide text_;
    Runtime runtime_;
    Network network_;
    Engine engine_;
};

/// What a model takes, for people, before it takes it: weights, and the cache when it is full.
///
/// @throws UserError where the folder is not one of a model.
std::string memory_of(const std::filesystem::path& folder, std::size_t max_rows);

}  // namespace lit_sft
