#include "generation.h"

#include "json_file.h"
#include "lit_sft/error.h"

namespace lit_sft {
namespace {

constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMostOfSize = 1 << 20;

void expect(const JsonObject& file, const char* key, const std::string& value, const std::string& remedy) {
    if (file.text(key) != value)
        throw UserError(file.where() + ": " + key + " is " + file.at(key).dump() + ", and this program runs " + value +
                        " only: " + remedy);
}

}  // namespace

Generation read_generation(const std::filesystem::path& folder) {
    const auto file = JsonObject::read(folder / "generation.json");
    const auto version = file.number("version", 0, kMostOfSize);
    if (version != kVersion)
        throw UserError(file.where() + " is of version " + std::to_string(version) + ", and this program reads " +
                        std::to_string(kVersion) + ": export the model with the lit_sft that this program is of");
    expect(file, "graph", "fused", "export the model without --portable");
    expect(file, "output", "logits", "a reward model is scored in Python");
    Generation found;
    found.context_length = static_cast<std::size_t>(file.number("context_length", 1, kMostOfSize));
    found.vocab_size = static_cast<std::size_t>(file.number("vocab_size", 1, kMostOfSize));
    const auto last_token = static_cast<std::int64_t>(found.vocab_size) - 1;
    if (file.has("prefix_end_id")) found.prefix_end_id = file.number("prefix_end_id", 0, last_token);
    found.stop = file.numbers("stop_token_ids", 0, last_token);
    if (found.stop.empty()) file.refuse("stop_token_ids", "tokens that end an answer");
    if (file.has("strategy")) found.strategy = parse_strategy(file.at("strategy"), file.where() + ": strategy");
    const auto type = file.text("cache_dtype");
    if (type != "float32" && type != "float16") file.refuse("cache_dtype", "float32 or float16");
    if (type == "float16") found.cache_type = ort::ElementType::float16;
    for (const auto& layer : file.objects("layers")) {
        const auto size = [&](const char* key) { return static_cast<std::size_t>(layer.number(key, 1, kMostOfSize)); };
        const auto number = std::to_string(found.cache.size() / 2);
        found.cache.push_back({number + ".key", size("num_heads"), size("key_dim")});
        found.cache.push_back({number + ".value", size("num_heads"), size("value_dim")});
    }
    return found;
}

void check_graph(const Generation& generation, const GraphShape& shape, const std::filesystem::path& folder) {
    const bool is_same = shape.cache == generation.cache && shape.cache_type == generation.cache_type &&
                         shape.vocabulary == generation.vocab_size &&
                         shape.has_prefix == (generation.prefix_end_id >= 0);
    if (!is_same)
        throw UserError((folder / "model.onnx").string() +
                        " is not the graph that generation.json describes; export the model again");
}

}  // namespace lit_sft
