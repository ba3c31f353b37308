#pragma once

#include <filesystem>
#include <vector>

#include "engine.h"
#include "graph.h"

namespace lit_sft {

/// `generation.json` of an exported folder: what the graph cannot say of itself.
struct Generation {
    std::size_t context_length = 0;
    std::size_t vocab_size = 0;
    TokenId prefix_end_id = -1;  ///< -1: nothing sees itself in both directions
    TokenIds stop;               ///< tokens that end an answer
    Strategy strategy;           ///< what the model was trained to be asked with
    std::vector<CacheTensor> cache;
    ort::ElementType cache_type = ort::ElementType::float32;
};

/// @throws UserError where the file is missing or damaged, or describes what this program does not run.
Generation read_generation(const std::filesystem::path& folder);

/// @throws UserError where a graph is not the one that was described.
void check_graph(const Generation& generation, const GraphShape& shape, const std::filesystem::path& folder);

}  // namespace lit_sft
