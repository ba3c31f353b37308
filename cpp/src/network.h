#pragma once

#include <span>
#include <vector>

#include "cache.h"
#include "graph.h"
#include "logits.h"

namespace lit_sft {

/// Tokens of one row that stand behind what the cache already holds of it.
struct RowPiece {
    std::span<const TokenId> ids;
    std::size_t start = 0;            ///< tokens of the row in the cache
    std::int64_t prefix_length = -1;  ///< of the row: what sees itself in both directions; -1 without such
};

/// The graph over a cache: reads tokens, gives logits.
class Network {
   public:
    Network(const Runtime& runtime, const std::filesystem::path& file, int num_threads)
        : graph_(runtime, file, num_threads), cache_(graph_.shape()) {}

    [[nodiscard]] const GraphShape& shape() const { return graph_.shape(); }
    Cache& cache() { return cache_; }

    /// Reads a piece of one row.
    ///
    /// @param wanted places in the piece; those of the last piece's run only live until the next.
    /// @return logits of each place.
    std::span<const Logits> read(std::size_t row, const RowPiece& piece, std::span<const std::size_t> wanted);

    /// Reads one token of each of the first rows.
    std::span<const Logits> read_next(std::span<const RowPiece> pieces);

   private:
    struct Inputs;
    std::span<const Logits> run(std::size_t first_row, Inputs& inputs);

    Graph graph_;
    Cache cache_;
    std::vector<float> buffer_;
    std::vector<Logits> logits_;
};

}  // namespace lit_sft
