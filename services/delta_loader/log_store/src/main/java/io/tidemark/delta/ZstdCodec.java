package io.tidemark.delta;

import org.apache.parquet.hadoop.codec.ZstandardCodec;

/**
 * Reads files named {@code *.zst} where Spark leaves that to Hadoop, whose own codec needs a native library that hardly
 * any Spark comes with. Parquet's, which every Spark has, needs none, and differs in nothing but the name it goes by.
 */
public class ZstdCodec extends ZstandardCodec {
    @Override
    public String getDefaultExtension() {
        return ".zst";
    }
}
