#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

#include "graph.h"

namespace lit_sft {

/// Keys and values of several rows, each of a length of its own: [rows, heads, capacity, dim] for each tensor.
///
/// Knows bytes only; which row belongs to whom, and how long it is, others know.
class Cache {
   public:
    explicit Cache(const GraphShape& shape) : shape_(shape), buffers_(shape.cache.size()) {}

    [[nodiscard]] std::size_t rows() const { return rows_; }
    [[nodiscard]] std::size_t capacity() const { return capacity_; }
    /// What so many rows of so many tokens take.
    [[nodiscard]] std::size_t bytes(std::size_t rows, std::size_t capacity) const {
        return rows * capacity * shape_.bytes_per_token();
    }

    /// Makes room, keeping the first `lengths[row]` tokens of each row. Takes old and new buffer of one tensor at a
    /// time.
    ///
    /// @throws UserError where the machine has not enough memory left.
    void resize(std::size_t rows, std::size_t capacity, const std::vector<std::size_t>& lengths);

    /// Copies tokens `from` up to `to` of one row to the same places of another.
    void copy(std::size_t source, std::size_t target, std::size_t from, std::size_t to);

    /// Row `rows[i]` becomes what row `rows[parents[i]]` was, for all i at once, in the places `from` up to `to`.
    void reorder(const std::vector<std::size_t>& rows, const std::vector<std::size_t>& parents, std::size_t from,
                 std::size_t to);

    /// Exchanges the first `length` tokens of two rows.
    void swap(std::size_t one, std::size_t other, std::size_t length);

    /// `count` rows from `first` on, as the graph reads and writes them.
    [[nodiscard]] std::vector<TensorView> view(std::size_t first, std::size_t count) const;

   private:
    struct Free {
        void operator()(std::byte* bytes) const { std::free(bytes); }
    };
    using Buffer = std::unique_ptr<std::byte, Free>;

    [[nodiscard]] std::size_t token_bytes(std::size_t tensor) const;  // of one head
    [[nodiscard]] std::byte* at(std::size_t tensor, std::size_t row, std::size_t head) const;

    const GraphShape& shape_;
    std::vector<Buffer> buffers_;
    std::size_t rows_ = 0;
    std::size_t capacity_ = 0;
};

}  // namespace lit_sft
