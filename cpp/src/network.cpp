#include "network.h"

#include <algorithm>

namespace lit_sft {

/// Of one run, as the graph names them.
struct Network::Inputs {
    std::vector<std::int64_t> input_ids;        // [rows, tokens]
    std::vector<std::int64_t> position_ids;     // [rows, tokens]
    std::vector<std::int64_t> logit_positions;  // [rows, outputs]
    std::vector<std::int64_t> prefix_length;    // [rows]
    std::vector<std::int32_t> seqlens_k;        // [rows]: tokens of the row with the new ones, less 1
    std::int32_t total_length = 0;              // of the longest row

    void add(const RowPiece& piece) {
        for (std::size_t i = 0; i < piece.ids.size(); ++i) {
            input_ids.push_back(piece.ids[i]);
            position_ids.push_back(static_cast<std::int64_t>(piece.start + i));
        }
        const auto length = static_cast<std::int32_t>(piece.start + piece.ids.size());
        prefix_length.push_back(piece.prefix_length);
        seqlens_k.push_back(length - 1);
        total_length = std::max(total_length, length);
    }
};

std::span<const Logits> Network::read(std::size_t row, const RowPiece& piece, std::span<const std::size_t> wanted) {
    Inputs inputs;
    inputs.add(piece);
    for (const auto place : wanted) inputs.logit_positions.push_back(static_cast<std::int64_t>(place));
    return run(row, inputs);
}

std::span<const Logits> Network::read_next(std::span<const RowPiece> pieces) {
    Inputs inputs;
    for (const auto& piece : pieces) {
        inputs.add(piece);
        inputs.logit_positions.push_back(0);
    }
    return run(0, inputs);
}

std::span<const Logits> Network::run(std::size_t first_row, Inputs& inputs) {
    using ort::ElementType;
    const auto rows = inputs.seqlens_k.size();
    const auto matrix = [&](const char* name, std::vector<std::int64_t>& numbers) {
        const auto batch = static_cast<std::int64_t>(rows);
        const auto columns = static_cast<std::int64_t>(numbers.size()) / batch;
        return TensorView{name, numbers.data(), numbers.size() * 8, {batch, columns}, ElementType::int64};
    };
    const auto batch = static_cast<std::int64_t>(rows);
    std::vector<TensorView> tensors = {
        matrix("input_ids", inputs.input_ids),
        matrix("position_ids", inputs.position_ids),
        matrix("logit_positions", inputs.logit_positions),
        {"seqlens_k", inputs.seqlens_k.data(), rows * 4, {batch}, ElementType::int32},
        {"total_length", &inputs.total_length, 4, {1}, ElementType::int32},
    };
    if (shape().has_prefix)
        tensors.push_back({"prefix_length", inputs.prefix_length.data(), rows * 8, {batch}, ElementType::int64});

    const auto vocabulary = shape().vocabulary;
    const auto outputs = inputs.logit_positions.size();
    buffer_.resize(outputs * vocabulary);
    graph_.bind_cache(cache_.view(first_row, rows));
    graph_.run(tensors, {"logits",
                         buffer_.data(),
                         buffer_.size() * sizeof(float),
                         {batch, static_cast<std::int64_t>(outputs / rows), static_cast<std::int64_t>(vocabulary)},
                         ElementType::float32});
    logits_.clear();
    for (std::size_t i = 0; i < outputs; ++i) logits_.emplace_back(buffer_.data() + i * vocabulary, vocabulary);
    return logits_;
}

}  // namespace lit_sft
