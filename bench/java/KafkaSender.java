import java.io.BufferedReader;
import java.io.InputStreamReader;
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
 * What the program attached to KAFKA-6512 does: many producers, a thread each, sending as fast as they can.
 *
 * Arguments: topic, producers, message bytes, file of messages, then the client's settings as name=value. Speaks JSON
 * lines as bench/memory_side.py does: "ready", then on "go" it starts and counts until "stop"; "collect" asks for the
 * bytes of the heap that are reachable.
 */
public final class KafkaSender {
    private static final LongAdder accepted = new LongAdder();
    private static final LongAdder acked = new LongAdder();
    private static final LongAdder failed = new LongAdder();
    private static volatile boolean stopping;
    private static volatile String error = "";

    public static void main(String[] args) throws Exception {
        String topic = args[0];
        int producers = Integer.parseInt(args[1]);
        List<byte[]> messages = messages(args[3], Integer.parseInt(args[2]));
        Properties settings = new Properties();
        for (String setting : Arrays.asList(args).subList(4, args.length)) {
            settings.put(setting.substring(0, setting.indexOf('=')), setting.substring(setting.indexOf('=') + 1));
        }
        BufferedReader orders = new BufferedReader(new InputStreamReader(System.in));
        System.gc();
        say("\"event\":\"ready\"");
        orders.readLine();
        List<Thread> senders = start(topic, producers, messages, settings);
        say("\"event\":\"started\"");
        daemon(KafkaSender::report);
        daemon(() -> obey(orders));
        for (Thread sender : senders) {
            sender.join();
        }
        say("\"event\":\"end\"," + counts() + ",\"error\":\"" + error.replaceAll("[^ -!#-\\[\\]-~]", " ") + "\"");
        System.exit(0);
    }

    private static List<byte[]> messages(String file, int bytes) throws Exception {
        byte[] all = Files.readAllBytes(Paths.get(file));
        List<byte[]> messages = new ArrayList<>();
        for (int at = 0; at + bytes <= all.length; at += bytes) {
            messages.add(Arrays.copyOfRange(all, at, at + bytes));
        }
        return messages;
    }

    private static List<Thread> start(String topic, int producers, List<byte[]> messages, Properties settings) {
        List<KafkaProducer<byte[], byte[]>> made = new ArrayList<>();
        for (int index = 0; index < producers; index++) {
            made.add(new KafkaProducer<>(settings));
        }
        List<Thread> senders = new ArrayList<>();
        for (int index = 0; index < producers; index++) {
            KafkaProducer<byte[], byte[]> producer = made.get(index);
            int number = index;
            int first = index * messages.size() / producers;
            senders.add(new Thread(() -> send(producer, number, topic, messages, first)));
        }
        senders.forEach(Thread::start);
        return senders;
    }

    private static void send(
            KafkaProducer<byte[], byte[]> producer, int number, String topic, List<byte[]> messages, int first) {
        Callback callback = (metadata, failure) -> {
            if (failure == null) {
                acked.increment();
            } else {
                failed.increment();
                error = failure.toString();
            }
        };
        try {
            for (long sequence = 0; !stopping; sequence++) {
                byte[] message = messages.get((int) ((first + sequence) % messages.size()));
                producer.send(new ProducerRecord<>(topic, stamped(number, sequence, message)), callback);
                accepted.increment();
            }
        } catch (RuntimeException failure) {
            error = failure.toString();
        }
        producer.close();
    }

    /** What stamped() in bench/memory_messages.py makes. */
    private static byte[] stamped(int number, long sequence, byte[] message) {
        byte[] value = message.clone();
        digits(value, 7, 11, number);
        value[11] = '-';
        digits(value, 12, 24, sequence);
        return value;
    }

    private static void digits(byte[] value, int from, int to, long number) {
        long left = number;
        for (int at = to - 1; at >= from; at--) {
            value[at] = (byte) ('0' + left % 10);
            left /= 10;
        }
    }

    private static void report() {
        try {
            while (true) {
                say("\"event\":\"counts\"," + counts());
                Thread.sleep(100);
            }
        } catch (InterruptedException ended) {
            Thread.currentThread().interrupt();
        }
    }

    private static void obey(BufferedReader orders) {
        try {
            for (String order = orders.readLine(); order != null; order = orders.readLine()) {
                if (order.equals("stop")) {
                    stopping = true;
                } else if (order.equals("collect")) {
                    say("\"event\":\"heap\",\"heap\":" + reachableBytes());
                }
            }
        } catch (java.io.IOException gone) {
            stopping = true;
        }
    }

    private static long reachableBytes() {
        System.gc();
        return ManagementFactory.getMemoryMXBean().getHeapMemoryUsage().getUsed();
    }

    private static String counts() {
        return "\"accepted\":" + accepted.sum() + ",\"acked\":" + acked.sum() + ",\"failed\":" + failed.sum();
    }

    private static void daemon(Runnable work) {
        Thread thread = new Thread(work);
        thread.setDaemon(true);
        thread.start();
    }

    private static synchronized void say(String fields) {
        System.out.println("{" + fields + "}");
        System.out.flush();
    }
}
