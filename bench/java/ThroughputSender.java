import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedInputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.producer.Callback;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * One side of the throughput comparison, as bench/side.py is.
 *
 * Arguments: file of records (bench/kinds.py), topic, records before the clock runs, records, keyed, then the client's
 * settings as name=value. Prints one JSON line.
 */
public final class ThroughputSender {
    private static final LongAdder acknowledged = new LongAdder();
    private static volatile Exception failed;
    private static final Callback COUNT = (metadata, failure) -> {
        if (failure == null) {
            acknowledged.increment();
        } else {
            failed = failure;
        }
    };

    public static void main(String[] args) throws Exception {
        List<byte[]> keys = new ArrayList<>();
        List<byte[]> values = new ArrayList<>();
        read(args[0], keys, values);
        int warmUp = Integer.parseInt(args[2]);
        int records = Integer.parseInt(args[3]);
        if (!Boolean.parseBoolean(args[4])) {
            keys.replaceAll(key -> null);
        }
        Properties settings = new Properties();
        for (String setting : Arrays.asList(args).subList(5, args.length)) {
            settings.put(setting.substring(0, setting.indexOf('=')), setting.substring(setting.indexOf('=') + 1));
        }
        OperatingSystemMXBean process = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings)) {
            send(producer, args[1], keys, values, 0, warmUp);
            System.gc();
            long cpu = process.getProcessCpuTime();
            long start = System.nanoTime();
            send(producer, args[1], keys, values, warmUp, records);
            double seconds = (System.nanoTime() - start) / 1e9;
            double cpuSeconds = (process.getProcessCpuTime() - cpu) / 1e9;
            System.out.println("{\"seconds\":" + seconds + ",\"cpu_seconds\":" + cpuSeconds + ",\"acknowledged\":"
                    + acknowledged.sum() + "}");
        }
    }

    private static void send(
            KafkaProducer<byte[], byte[]> producer,
            String topic,
            List<byte[]> keys,
            List<byte[]> values,
            int first,
            int count)
            throws Exception {
        int distinct = values.size();
        int at = first % distinct;
        for (int sent = 0; sent < count; sent++) {
            producer.send(new ProducerRecord<>(topic, keys.get(at), values.get(at)), COUNT);
            if (failed != null) { // or each record of a topic that nobody knows would wait for max.block.ms
                throw failed;
            }
            at = at + 1 == distinct ? 0 : at + 1;
        }
        producer.flush();
    }

    private static void read(String file, List<byte[]> keys, List<byte[]> values) throws Exception {
        try (DataInputStream in =
                new DataInputStream(new BufferedInputStream(Files.newInputStream(Paths.get(file)), 1 << 20))) {
            while (true) {
                keys.add(field(in, in.readInt()));
                values.add(field(in, in.readInt()));
            }
        } catch (EOFException end) {
            // Every record has been read.
        }
    }

    private static byte[] field(DataInputStream in, int length) throws Exception {
        return length < 0 ? null : in.readNBytes(length);
    }
}
